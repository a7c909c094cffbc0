//! `#[libckpt::datatype]`.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{Error, ItemStruct, Result};

pub(crate) fn expand(arguments: TokenStream, item: TokenStream) -> Result<TokenStream> {
    if !arguments.is_empty() {
        return Err(Error::new_spanned(
            arguments,
            "#[libckpt::datatype] takes no arguments",
        ));
    }
    let item: ItemStruct = syn::parse2(item).map_err(|error| {
        Error::new(
            error.span(),
            "#[libckpt::datatype] belongs on a struct of plain data",
        )
    })?;
    if !item.generics.params.is_empty() {
        return Err(Error::new_spanned(
            &item.generics,
            "a generic struct can't be a datatype: its layout is not known; write one struct for each type",
        ));
    }
    let representation = item
        .attrs
        .iter()
        .all(|attribute| !attribute.path().is_ident("repr"))
        .then(|| quote! { #[repr(C)] });
    let name = &item.ident;
    Ok(quote! {
        #[derive(
            ::core::clone::Clone,
            ::core::marker::Copy,
            ::libckpt::zerocopy::FromBytes,
            ::libckpt::zerocopy::IntoBytes,
            ::libckpt::zerocopy::Immutable,
        )]
        #[zerocopy(crate = "::libckpt::zerocopy")]
        #representation
        #item

        impl ::libckpt::comm::datatype::Equivalence for #name {}
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(item: TokenStream) -> String {
        expand(TokenStream::new(), item).unwrap().to_string()
    }

    #[test]
    fn a_struct_gets_a_representation_unless_it_has_one() {
        assert!(expanded(quote! { struct Point { x: f64 } }).contains("# [repr (C)]"));
        let packed = expanded(quote! { #[repr(C, packed)] struct Point { x: f64 } });
        assert_eq!(packed.matches("repr").count(), 1);
    }

    #[test]
    fn an_enum_or_a_generic_struct_is_refused() {
        let refusal = |item| expand(TokenStream::new(), item).unwrap_err().to_string();
        assert!(refusal(quote! { enum Side { Left } }).contains("struct"));
        assert!(refusal(quote! { struct Pair<T>(T, T); }).contains("generic"));
    }
}
