//! `#[libckpt::main]`.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{Error, FnArg, ItemFn, Result};

pub(crate) fn expand(arguments: TokenStream, item: TokenStream) -> Result<TokenStream> {
    if !arguments.is_empty() {
        return Err(Error::new_spanned(
            arguments,
            "#[libckpt::main] takes no arguments",
        ));
    }
    let solver: ItemFn = syn::parse2(item)?;
    let signature = &solver.sig;
    if signature.ident != "main" {
        return Err(Error::new_spanned(
            &signature.ident,
            "#[libckpt::main] belongs on the function `main`",
        ));
    }
    if let Some(asyncness) = &signature.asyncness {
        return Err(Error::new_spanned(
            asyncness,
            "a solver's `main` can't be async: a rank is a flow of control of its own already",
        ));
    }
    if !signature.generics.params.is_empty() {
        return Err(Error::new_spanned(
            &signature.generics,
            "a solver's `main` can't be generic",
        ));
    }
    let inputs = &signature.inputs;
    if inputs.len() != 1 || matches!(inputs.first(), Some(FnArg::Receiver(_))) {
        return Err(Error::new_spanned(
            signature,
            "a solver's `main` takes one argument: `fn main(world: libckpt::prelude::World)`",
        ));
    }
    Ok(quote! {
        #[global_allocator]
        static LIBCKPT_ALLOCATOR: ::libckpt::rank::Allocator = ::libckpt::rank::Allocator;

        fn main() -> ::std::process::ExitCode {
            #solver
            ::libckpt::run(main)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(item: TokenStream) -> String {
        expand(TokenStream::new(), item).unwrap_err().to_string()
    }

    #[test]
    fn a_main_of_one_argument_becomes_the_solver() {
        let solver = quote! { fn main(world: World) -> Result<(), String> { Ok(()) } };
        let expanded = expand(TokenStream::new(), solver.clone()).unwrap();
        let file: syn::File = syn::parse2(expanded).unwrap();
        let [syn::Item::Static(allocator), syn::Item::Fn(main)] = &file.items[..] else {
            panic!("an allocator and a main");
        };
        assert!(allocator.attrs[0].path().is_ident("global_allocator"));
        assert!(main.sig.inputs.is_empty());
        assert!(quote!(#main).to_string().contains(&solver.to_string()));
    }

    #[test]
    fn what_is_wrong_with_a_main_is_said() {
        assert!(refusal(quote! { fn main() {} }).contains("one argument"));
        assert!(refusal(quote! { fn main(a: World, b: World) {} }).contains("one argument"));
        assert!(refusal(quote! { fn main(&self) {} }).contains("one argument"));
        assert!(refusal(quote! { fn solve(world: World) {} }).contains("function `main`"));
        assert!(refusal(quote! { async fn main(world: World) {} }).contains("async"));
        assert!(refusal(quote! { fn main<T>(world: World) {} }).contains("generic"));
        let solver = quote! { fn main(world: World) {} };
        assert!(
            expand(quote! { ranks = 4 }, solver)
                .unwrap_err()
                .to_string()
                .contains("no arguments")
        );
    }
}
