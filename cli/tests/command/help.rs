//! The examples in the help texts: those that need nothing but Ringpost do what they say, word for word.

use std::{path::Path, process::Command};

use ringpost_protocol::Code;

use crate::harness::{Ended, Process, Server, ringpost, run};

/// The lines of a help text that begin with `ringpost COMMAND` or have it behind a pipe, without what is said beside them.
fn examples(args: &[&str], command: &str) -> Vec<String> {
    let help = run(args);
    assert_eq!(help.code, Some(0), "{}", help.stderr);
    let command = format!("ringpost {command}");
    let lines = help.stdout.lines().filter_map(|line| line.strip_prefix("  ")).filter(|line| {
        line.starts_with(&command)
            || line.split_once(" | ").is_some_and(|(_, second)| second.starts_with(&command))
    });
    lines.map(|line| line.split("   ").next().unwrap().trim_end().to_owned()).collect()
}

/// A line as a shell runs it, with this server.
fn shell(server: &Server, line: &str) -> Process {
    let plain = ringpost(&[]);
    let folder = Path::new(plain.get_program()).parent().unwrap();
    let path = std::env::join_paths(
        [folder.to_owned()].into_iter().chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    );
    let mut command = Command::new("sh");
    // A single command is started in the shell's place: a signal for it reaches it.
    let line = if line.contains(" | ") { line.to_owned() } else { format!("exec {line}") };
    command.args(["-c", &line]);
    for (name, _) in plain.get_envs() {
        command.env_remove(name);
    }
    command.env("PATH", path.unwrap()).env("RINGPOST_SERVER", &server.address);
    Process::start(command)
}

fn ended(server: &Server, line: &str) -> Ended {
    shell(server, line).wait()
}

/// The first request of the top help gets the reply that stands below it.
#[test]
fn first_request() {
    let server = Server::start();
    let [handle] = &examples(&["--help"], "handle")[..] else { panic!("not one handler") };
    let handler = shell(&server, handle);
    handler.stderr_line("handling `");
    let [request] = &examples(&["--help"], "request")[..] else { panic!("not one request") };
    let ended = ended(&server, request);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "\"YOU\"\n"), "{}", ended.stderr);
    assert!(run(&["--help"]).stdout.contains("prints \"YOU\""));
}

/// The requests and looks of the commands' own help go well, with the handler of the help for handlers.
#[test]
fn requests_and_looks() {
    let server = Server::start();
    let handle = examples(&["handle", "--help"], "handle").into_iter().find(|line| line.ends_with("--echo"));
    let handler = shell(&server, &handle.unwrap());
    handler.stderr_line("handling `");
    let mut lines = examples(&["request", "--help"], "request");
    assert!(lines.len() >= 4, "{lines:?}");
    lines.extend(examples(&["receivers", "--help"], "receivers"));
    lines.extend(examples(&["stats", "--help"], "stats"));
    for line in lines.iter().filter(|line| !line.contains("--watch") && !line.contains("| jq")) {
        let ended = ended(&server, line);
        assert_eq!(ended.code, Some(0), "{line}: {}", ended.stderr);
        assert_ne!(ended.stdout, "", "{line}");
    }
}

/// The top help names every exit code that a request can end with.
#[test]
fn exit_codes() {
    let help = run(&["--help"]).stdout;
    let (_, codes) = help.split_once("Exit codes:").unwrap();
    let words: Vec<_> = codes.split(|letter: char| !letter.is_ascii_digit()).collect();
    for code in Code::ALL {
        assert!(words.contains(&&*code.exit_code().to_string()), "{}: {codes}", code.text());
    }
}
