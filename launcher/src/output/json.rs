//! Output for programs: one JSON record on standard output.

use std::io::Write;

use serde::Serialize;

use super::{Output, Report};
use crate::failure::{Failure, Kind};
use crate::report::SCHEMA;

/// Collects warnings and prints one record at the end.
#[derive(Default)]
pub struct Json {
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct Record<'a, R> {
    schema: u32,
    command: &'a str,
    code: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<R>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorRecord<'a>>,
    warnings: &'a [String],
}

#[derive(Serialize)]
struct ErrorRecord<'a> {
    kind: Kind,
    message: &'a str,
}

impl Json {
    fn print<R: Serialize>(
        &self,
        command: &str,
        code: i32,
        result: Option<R>,
        error: Option<ErrorRecord<'_>>,
    ) {
        let record = Record {
            schema: SCHEMA,
            command,
            code,
            result,
            error,
            warnings: &self.warnings,
        };
        let line = serde_json::to_string(&record).unwrap_or_else(|error| {
            format!("{{\"schema\":{SCHEMA},\"code\":70,\"error\":{{\"kind\":\"internal\",\"message\":\"{error}\"}}}}")
        });
        // Whoever asked has closed the pipe: there is nobody left to tell.
        let _ = writeln!(std::io::stdout(), "{line}");
    }
}

impl Output for Json {
    fn warning(&mut self, text: &str) {
        self.warnings.push(text.to_owned());
    }

    fn report(&mut self, command: &str, code: i32, report: &Report) {
        match report {
            Report::Run(result) => self.print(command, code, Some(result), None),
            Report::List(result) => self.print(command, code, Some(result), None),
            Report::Show(result) => self.print(command, code, Some(result), None),
            Report::Verify(result) => self.print(command, code, Some(result), None),
            Report::Taken(result) => self.print(command, code, Some(result), None),
            Report::Status(result) => self.print(command, code, Some(result), None),
            Report::Moved(result) => self.print(command, code, Some(result), None),
            Report::Processes(result) => self.print(command, code, Some(result), None),
            Report::Drained(result) => self.print(command, code, Some(result), None),
            Report::Undrained(result) => self.print(command, code, Some(result), None),
            Report::Removed(result) => self.print(command, code, Some(result), None),
        }
    }

    fn failure(&mut self, command: &str, failure: &Failure) {
        let error = ErrorRecord {
            kind: failure.kind,
            message: &failure.message,
        };
        self.print::<()>(command, failure.code(), None, Some(error));
    }
}
