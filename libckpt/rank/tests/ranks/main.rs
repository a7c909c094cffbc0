//! Ranks run, are captured, and go on in new processes.
//!
//! Each test starts this same program again in a role (`ranks role NAME ARGUMENTS`), as the library
//! wants it: ranks on the main thread, at fixed addresses. A test looks at what its children print and
//! how they end; a role may also assert for itself. `cargo test --test ranks WORD` runs the tests with
//! the word in their names.

mod child;
mod cuts;
mod frees;
mod images;
mod incoming;
mod overflow;
mod refusals;
mod starts;
mod tangle;
mod threads;

use std::panic::catch_unwind;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: libckpt_rank::Allocator = libckpt_rank::Allocator;

/// A test, named like a sentence.
pub struct Test(pub &'static str, pub fn());

/// What a child process does, and the name it is called by.
pub struct Role(pub &'static str, pub fn(&[String]));

/// `tests![a, b]`: tests named as their functions.
#[macro_export]
macro_rules! tests {
    ($($test:ident),* $(,)?) => {
        pub const TESTS: &[$crate::Test] = &[$($crate::Test(stringify!($test), $test)),*];
    };
}

/// `roles![a, b]`: roles named as their functions.
#[macro_export]
macro_rules! roles {
    ($($role:ident),* $(,)?) => {
        pub const ROLES: &[$crate::Role] = &[$($crate::Role(stringify!($role), $role)),*];
    };
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, role, rest @ ..] = arguments.as_slice()
        && first == "role"
    {
        play(role, rest);
        return ExitCode::SUCCESS;
    }
    run_tests(&arguments)
}

fn play(name: &str, arguments: &[String]) {
    // A child that hangs is a failed test, not a hanging one.
    // SAFETY: alarm has no preconditions.
    unsafe { libc::alarm(120) };
    let Role(_, role) = [
        cuts::ROLES,
        frees::ROLES,
        images::ROLES,
        incoming::ROLES,
        overflow::ROLES,
        refusals::ROLES,
        starts::ROLES,
        threads::ROLES,
    ]
    .into_iter()
    .flatten()
    .find(|role| role.0 == name)
    .unwrap_or_else(|| panic!("there is no role {name}"));
    role(arguments);
}

fn run_tests(arguments: &[String]) -> ExitCode {
    let words: Vec<&String> = arguments
        .iter()
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let mut failed = 0;
    for Test(name, test) in [
        cuts::TESTS,
        frees::TESTS,
        images::TESTS,
        incoming::TESTS,
        overflow::TESTS,
        refusals::TESTS,
        starts::TESTS,
        threads::TESTS,
    ]
    .into_iter()
    .flatten()
    {
        if !words.is_empty() && !words.iter().any(|word| name.contains(word.as_str())) {
            continue;
        }
        let passed = catch_unwind(test).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        failed += u32::from(!passed);
    }
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        println!("{failed} failed");
        ExitCode::from(101)
    }
}
