//! The remote shell of the test bed's nodes (`tests::nodes::shell`): `node-shell serve` on each of them; under any
//! other name, such as `ssh`, the client.

use std::process::ExitCode;

use tests::nodes::shell;

fn main() -> ExitCode {
    let mut arguments = std::env::args();
    let program = arguments.next().unwrap_or_default();
    let arguments: Vec<String> = arguments.collect();
    let ended = if program.ends_with("node-shell") && arguments == ["serve"] {
        shell::serve().map(|()| 0)
    } else {
        shell::call(&arguments)
    };
    match ended {
        Ok(code) => u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from),
        Err(error) => {
            eprintln!("ssh: {error:#}");
            u8::try_from(shell::UNREACHED).map_or(ExitCode::FAILURE, ExitCode::from)
        }
    }
}
