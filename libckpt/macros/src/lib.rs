//! The attributes of `libckpt`: [`macro@main`] and [`macro@datatype`].

mod datatype;
mod solver_main;

use proc_macro::TokenStream;

/// Makes a function the solver's `main`: each rank calls it with its `World`.
///
/// Works for a function of one argument, the `World`, with any return type that implements
/// `libckpt::Termination`: `()`, `Result<(), E>` for any `E` that can be displayed, `libckpt::ExitStatus`.
/// It must be named `main` and stand at the root of the program. It also sets the global allocator,
/// which puts everything that a rank allocates into the rank's slot; a program with an allocator of its own
/// can't be a solver.
#[proc_macro_attribute]
pub fn main(arguments: TokenStream, item: TokenStream) -> TokenStream {
    expand(solver_main::expand(arguments.into(), item.into()))
}

/// Makes a struct plain data that can be an element of messages.
///
/// Its fields must be plain data themselves, and there must be no padding between or behind them: the compiler
/// says where there is. The struct gets `#[repr(C)]`, if it names no representation, the derives `Clone`
/// and `Copy`, those of the `zerocopy` crate that prove it to be plain data, and `libckpt`'s `Equivalence`.
///
/// Derives of one's own stand below the attribute.
#[proc_macro_attribute]
pub fn datatype(arguments: TokenStream, item: TokenStream) -> TokenStream {
    expand(datatype::expand(arguments.into(), item.into()))
}

fn expand(expanded: syn::Result<proc_macro2::TokenStream>) -> TokenStream {
    expanded
        .unwrap_or_else(|error| error.to_compile_error())
        .into()
}
