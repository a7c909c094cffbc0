//! The command line of a solver: `--name value` or `--name=value`, and `--name` alone.

use std::fmt::Display;
use std::str::FromStr;

use libckpt::prelude::World;

/// The arguments that were not asked for yet.
#[derive(Debug)]
pub struct Arguments {
    usage: &'static str,
    left: Vec<String>,
}

/// Why a solver does not start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The user asked what the options are.
    Help(&'static str),
    /// The arguments make no sense.
    Wrong(String),
}

impl Problem {
    /// A problem with the arguments, and what to do.
    pub fn wrong(what: impl Display) -> Self {
        Self::Wrong(format!("{what}; --help tells the options"))
    }

    /// What `main` returns. Rank 0 speaks for all, as all have the same problem.
    ///
    /// # Errors
    /// On rank 0 the problem, unless it is only a request for help.
    pub fn told_by_rank_0(self, world: &World) -> Result<(), String> {
        match self {
            _ if world.rank() != 0 => Ok(()),
            Self::Help(usage) => {
                println!("{usage}");
                Ok(())
            }
            Self::Wrong(what) => Err(what),
        }
    }
}

impl Arguments {
    /// The arguments of this process.
    ///
    /// # Errors
    /// A request for help, or an argument that is no text.
    pub fn from_environment(usage: &'static str) -> Result<Self, Problem> {
        let given: Result<Vec<String>, _> = std::env::args_os()
            .skip(1)
            .map(std::ffi::OsString::into_string)
            .collect();
        match given {
            Ok(given) => Self::new(usage, given),
            Err(argument) => Err(Problem::wrong(format!(
                "argument {argument:?} is not UTF-8"
            ))),
        }
    }

    fn new(usage: &'static str, left: Vec<String>) -> Result<Self, Problem> {
        if left
            .iter()
            .any(|argument| argument == "--help" || argument == "-h")
        {
            return Err(Problem::Help(usage));
        }
        Ok(Self { usage, left })
    }

    /// The text that tells the options.
    #[must_use]
    pub fn usage(&self) -> &'static str {
        self.usage
    }

    /// True if the option stands there, alone.
    pub fn flag(&mut self, name: &str) -> bool {
        match self.left.iter().position(|argument| argument == name) {
            Some(at) => {
                self.left.remove(at);
                true
            }
            None => false,
        }
    }

    /// The value of an option.
    ///
    /// # Errors
    /// The option stands there without a value.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, Problem> {
        for at in 0..self.left.len() {
            let argument = &self.left[at];
            if argument == name {
                self.left.remove(at);
                if at == self.left.len() {
                    return Err(Problem::wrong(format!("{name} needs a value")));
                }
                return Ok(Some(self.left.remove(at)));
            }
            let value = argument
                .strip_prefix(name)
                .and_then(|rest| rest.strip_prefix('='));
            if let Some(value) = value {
                let value = value.to_owned();
                self.left.remove(at);
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    /// The value of an option that is a number or the like, or `otherwise`.
    ///
    /// # Errors
    /// The value is missing or can't be read.
    pub fn value<T>(&mut self, name: &str, otherwise: T) -> Result<T, Problem>
    where
        T: FromStr<Err: Display>,
    {
        match self.text(name)? {
            None => Ok(otherwise),
            Some(text) => text
                .parse()
                .map_err(|error| Problem::wrong(format!("{name} {text}: {error}"))),
        }
    }

    /// The words that were not asked for.
    #[must_use]
    pub fn rest(self) -> Vec<String> {
        self.left
    }

    /// Nothing more is expected.
    ///
    /// # Errors
    /// An argument that nothing has asked for.
    pub fn finish(self) -> Result<(), Problem> {
        match self.left.first() {
            None => Ok(()),
            Some(argument) => Err(Problem::wrong(format!("unknown argument {argument:?}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(given: &[&str]) -> Arguments {
        Arguments::new(
            "the options",
            given.iter().map(|&word| word.to_owned()).collect(),
        )
        .unwrap()
    }

    #[test]
    fn values_stand_behind_a_space_or_an_equals_sign() {
        let mut given = arguments(&["--steps", "12", "--size=3x4", "--progress"]);
        assert_eq!(given.text("--size").unwrap().as_deref(), Some("3x4"));
        assert_eq!(given.value("--steps", 1_u64), Ok(12));
        assert_eq!(given.value("--seed", 7_u64), Ok(7));
        assert!(given.flag("--progress"));
        assert!(!given.flag("--progress"));
        given.finish().unwrap();
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = |problem: Problem| match problem {
            Problem::Wrong(what) => what,
            Problem::Help(_) => panic!("a problem"),
        };
        let what = wrong(
            arguments(&["--steps", "many"])
                .value("--steps", 1_u64)
                .unwrap_err(),
        );
        assert!(
            what.contains("--steps many") && what.contains("invalid digit"),
            "{what}"
        );
        let what = wrong(arguments(&["--steps"]).value("--steps", 1_u64).unwrap_err());
        assert!(what.contains("needs a value"), "{what}");
        let what = wrong(arguments(&["--stepz=1"]).finish().unwrap_err());
        assert!(what.contains("--stepz=1"), "{what}");
    }

    #[test]
    fn help_comes_before_all_else() {
        let given = vec!["--steps".to_owned(), "--help".to_owned()];
        assert_eq!(
            Arguments::new("usage", given).unwrap_err(),
            Problem::Help("usage")
        );
    }
}
