//! How a reduction joins two values (MPI 4.1, 6.9.2 and 6.9.5).
//!
//! The predefined operations are types, so that the compiler refuses a bitwise "and" of floats; the
//! constructors of [`SystemOperation`] bear the names of the `mpi` crate. A closure or function of two
//! elements is an operation too:
//!
//! ```
//! use libckpt::prelude::*;
//! # fn longest(world: &World, here: [f64; 2], there: &mut [f64; 2]) -> Result<(), libckpt::Error> {
//! world.all_reduce_into(&here, there, |a: [f64; 2], b: [f64; 2]| if b[0] > a[0] { b } else { a })
//! # }
//! ```
//!
//! An operation must be associative up to rounding. It need not be commutative: values are always joined in
//! the order of ranks, `apply(lower ranks, higher ranks)`. In which tree they are joined depends on the size
//! of the communicator alone ([`collective`](super::collective)), so a sum of floats has the same bits
//! wherever the ranks are.

use super::datatype::Equivalence;

/// Joins two elements.
pub trait Operation<T: Equivalence> {
    /// The value of lower ranks and the value of higher ranks made one.
    fn apply(&self, lower: T, upper: T) -> T;

    /// `upper[i] = apply(lower[i], upper[i])`.
    fn fold_below(&self, lower: &[T], upper: &mut [T]) {
        for (&lower, upper) in lower.iter().zip(upper) {
            *upper = self.apply(lower, *upper);
        }
    }

    /// `lower[i] = apply(lower[i], upper[i])`.
    fn fold_above(&self, lower: &mut [T], upper: &[T]) {
        for (lower, &upper) in lower.iter_mut().zip(upper) {
            *lower = self.apply(*lower, upper);
        }
    }
}

impl<T: Equivalence, F: Fn(T, T) -> T> Operation<T> for F {
    fn apply(&self, lower: T, upper: T) -> T {
        self(lower, upper)
    }
}

/// Names for the predefined operations.
#[derive(Clone, Copy, Debug)]
pub enum SystemOperation {}

/// Declares an operation: its constructor, its type, and what it does to each kind of element.
macro_rules! operation {
    (
        $(#[$doc:meta])* $name:ident, $constructor:ident;
        $([$($type:ty)*] |$lower:ident, $upper:ident| $apply:expr;)*
    ) => {
        impl SystemOperation {
            $(#[$doc])*
            #[must_use]
            pub fn $constructor() -> $name {
                $name
            }
        }

        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default)]
        pub struct $name;

        $($(
            impl Operation<$type> for $name {
                #[inline]
                fn apply(&self, $lower: $type, $upper: $type) -> $type {
                    $apply
                }
            }
        )*)*

        impl<T: Equivalence, const N: usize> Operation<[T; N]> for $name
        where
            $name: Operation<T>,
        {
            /// Element by element.
            #[inline]
            fn apply(&self, lower: [T; N], upper: [T; N]) -> [T; N] {
                let mut joined = upper;
                self.fold_below(&lower, &mut joined);
                joined
            }
        }
    };
}

operation! {
    /// The sum; integers wrap around (`MPI_SUM`).
    Sum, sum;
    [u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize] |lower, upper| lower.wrapping_add(upper);
    [f32 f64] |lower, upper| lower + upper;
}

operation! {
    /// The product; integers wrap around (`MPI_PROD`).
    Product, product;
    [u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize] |lower, upper| lower.wrapping_mul(upper);
    [f32 f64] |lower, upper| lower * upper;
}

operation! {
    /// The greatest value (`MPI_MAX`). A float that is not a number wins over all numbers; of equal values the
    /// lowest rank's stays, which decides between `0.0` and `-0.0`.
    Max, max;
    [u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize] |lower, upper| lower.max(upper);
    [f32 f64] |lower, upper| if lower >= upper || lower.is_nan() { lower } else { upper };
}

operation! {
    /// The least value (`MPI_MIN`). A float that is not a number wins over all numbers; of equal values the
    /// lowest rank's stays, which decides between `0.0` and `-0.0`.
    Min, min;
    [u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize] |lower, upper| lower.min(upper);
    [f32 f64] |lower, upper| if lower <= upper || lower.is_nan() { lower } else { upper };
}

operation! {
    /// 1 if no value is 0, else 0 (`MPI_LAND`).
    LogicalAnd, logical_and;
    [u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize] |lower, upper| (lower != 0 && upper != 0).into();
}

operation! {
    /// 1 if a value is not 0, else 0 (`MPI_LOR`).
    LogicalOr, logical_or;
    [u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize] |lower, upper| (lower != 0 || upper != 0).into();
}

operation! {
    /// 1 if an odd number of values is not 0, else 0 (`MPI_LXOR`).
    LogicalXor, logical_xor;
    [u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize] |lower, upper| ((lower != 0) != (upper != 0)).into();
}

operation! {
    /// The bits that are set in every value (`MPI_BAND`).
    BitwiseAnd, bitwise_and;
    [u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize] |lower, upper| lower & upper;
}

operation! {
    /// The bits that are set in any value (`MPI_BOR`).
    BitwiseOr, bitwise_or;
    [u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize] |lower, upper| lower | upper;
}

operation! {
    /// The bits that are set in an odd number of values (`MPI_BXOR`).
    BitwiseXor, bitwise_xor;
    [u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize] |lower, upper| lower ^ upper;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined<T: Equivalence>(operation: impl Operation<T>, lower: T, upper: T) -> T {
        operation.apply(lower, upper)
    }

    #[test]
    fn integers_wrap_around_and_floats_round() {
        assert_eq!(joined(SystemOperation::sum(), 250_u8, 10), 4);
        assert_eq!(joined(SystemOperation::product(), i32::MAX, 2), -2);
        assert_eq!(joined(SystemOperation::sum(), 0.1, 0.2), 0.1 + 0.2);
    }

    #[test]
    fn the_extreme_of_floats_keeps_what_is_not_a_number() {
        assert!(joined(SystemOperation::max(), f64::NAN, 1.0).is_nan());
        assert!(joined(SystemOperation::max(), 1.0, f64::NAN).is_nan());
        assert!(joined(SystemOperation::min(), f32::NAN, 1.0).is_nan());
        assert!(joined(SystemOperation::min(), 1.0, f32::NAN).is_nan());
    }

    #[test]
    fn of_two_zeros_the_lower_ranks_stays() {
        assert!(joined(SystemOperation::max(), -0.0_f64, 0.0).is_sign_negative());
        assert!(joined(SystemOperation::max(), 0.0_f64, -0.0).is_sign_positive());
        assert!(joined(SystemOperation::min(), -0.0_f64, 0.0).is_sign_negative());
        assert!(joined(SystemOperation::min(), 0.0_f64, -0.0).is_sign_positive());
    }

    #[test]
    fn logical_operations_see_only_zero_and_not_zero() {
        assert_eq!(joined(SystemOperation::logical_and(), 4_u8, 8), 1);
        assert_eq!(joined(SystemOperation::logical_and(), 4_i64, 0), 0);
        assert_eq!(joined(SystemOperation::logical_or(), 0_u8, 8), 1);
        assert_eq!(joined(SystemOperation::logical_xor(), 4_u8, 8), 0);
        assert_eq!(joined(SystemOperation::bitwise_and(), 12_u8, 10), 8);
        assert_eq!(joined(SystemOperation::bitwise_or(), 12_u8, 10), 14);
        assert_eq!(joined(SystemOperation::bitwise_xor(), 12_u8, 10), 6);
    }

    #[test]
    fn arrays_are_joined_element_by_element() {
        assert_eq!(
            joined(SystemOperation::max(), [1, 9, 3], [4, 5, 6]),
            [4, 9, 6]
        );
        assert_eq!(
            joined(SystemOperation::sum(), [[1.0], [2.0]], [[3.0], [4.0]]),
            [[4.0], [6.0]]
        );
    }

    #[test]
    fn a_closure_is_an_operation_and_sees_the_lower_ranks_first() {
        let minus = |lower: i32, upper: i32| lower - upper;
        let mut upper = [1, 2];
        minus.fold_below(&[10, 20], &mut upper);
        assert_eq!(upper, [9, 18]);
        let mut lower = [1, 2];
        minus.fold_above(&mut lower, &[10, 20]);
        assert_eq!(lower, [-9, -18]);
    }
}
