//! The command line from outside: exit codes, and the JSON records as `docs/cli.md` promises them.
//!
//! Records are compared with the files in `golden/`; paths of this machine and digests are masked. Set
//! `UPDATE_GOLDEN=1` to write them anew, and look at the difference before you commit it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use protocol::control::{Compression, MappedObject, NeededFile, ProgramIdentity, StoredFile};
use protocol::ids::{Epoch, JobId, Rank};
use store::{
    CheckpointId, Effort, Figures, FileKey, ImageMap, JobRecord, JobStore, Manifest,
    RankFileWriter, SectionKind,
};

fn ckpt(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ckpt"))
        .current_dir(dir)
        .args(arguments)
        .output()
        .unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Digests change with every bit of the rank file's format, which is not the affair of these records.
fn mask_digests(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                match name.as_str() {
                    "digest" => *value = "32 hexadecimal digits".into(),
                    _ => mask_digests(value),
                }
            }
        }
        serde_json::Value::Array(values) => values.iter_mut().for_each(mask_digests),
        _ => {}
    }
}

/// Compares a record with its golden file.
fn assert_golden(name: &str, dir: &Path, output: &Output) {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let text = text.replace(dir.to_str().unwrap(), "/scratch");
    let mut value: serde_json::Value = serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{error} in {text:?}, stderr {:?}", told(output)));
    mask_digests(&mut value);
    let pretty = format!("{}\n", serde_json::to_string_pretty(&value).unwrap());
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.json"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &pretty).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(pretty, golden, "{}", path.display());
}

/// A store as a job of two ranks leaves it: checkpoints 1 and 2, the second from a restart. Of two pages of each rank
/// only the first has changed in between.
fn store_of_a_job(dir: &Path) -> PathBuf {
    let path = dir.join("job.ckpt");
    let job = JobRecord {
        job: JobId([0xab; 16]),
        argv: vec!["solver".into(), "--steps".into(), "7".into()],
        cwd: dir.to_owned(),
        ranks: 2,
        processes: 2,
        slot_bytes: 1 << 30,
        stack_bytes: 1 << 20,
        compression: Compression::None,
        keep: 2,
        created_unix_ms: 1_700_000_000_000,
        options: [("program".to_owned(), "/bin/true".to_owned())].into(),
    };
    let mut store = JobStore::create(&path, job.clone()).unwrap();
    let mut from: Option<CheckpointId> = None;
    let mut maps: [Option<Arc<ImageMap>>; 2] = [None, None];
    for number in 1..=2 {
        let incarnation = store.begin_incarnation(from).unwrap().incarnation;
        let epoch = Epoch(number);
        store.begin_epoch(epoch).unwrap();
        let finished = [0, 1].map(|rank| {
            let key = FileKey {
                job: job.job,
                incarnation,
                epoch,
                rank: Rank(rank),
            };
            let base = maps[rank as usize].take();
            let first = base.is_none();
            let mut writer = RankFileWriter::create(store.storage().clone(), key, base).unwrap();
            let page = [7; store::PAGE_BYTES];
            writer.pages(Effort::Stored, &[0], &page).unwrap();
            if first {
                writer.pages(Effort::Stored, &[1], &page).unwrap();
            } else {
                writer.inherit(std::slice::from_ref(&(1..2))).unwrap();
            }
            for kind in SectionKind::ALL {
                writer.section(kind, Effort::Stored, b"section").unwrap();
            }
            writer.finish().unwrap()
        });
        let files: Vec<StoredFile> = finished.iter().map(|one| one.file.clone()).collect();
        let needs = finished.iter().flat_map(|one| one.map.needs()).cloned();
        let needs: Vec<NeededFile> = needs.collect();
        let manifest = Manifest {
            job: job.job,
            incarnation,
            epoch,
            from,
            parent: from.filter(|_| !needs.is_empty()),
            programs: vec![ProgramIdentity {
                objects: vec![MappedObject {
                    path: "/bin/solver".to_owned(),
                    build_id: vec![1, 2, 0xfe],
                    address: 0x5555_5555_4000,
                }],
                page_bytes: 4096,
                ..ProgramIdentity::default()
            }],
            needs,
            committed_unix_ms: 1_700_000_000_000 + number * 1000,
            figures: Figures {
                stall_us: 1500,
                elapsed_us: 20_000,
                raw_bytes: files.iter().map(|file| file.raw_bytes).sum(),
                changed_bytes: files.iter().map(|file| file.changed_bytes).sum(),
                stored_bytes: files.iter().map(|file| file.file_bytes).sum(),
                faults: 3,
                waited_us: 450,
                longest_us: 200,
            },
            files,
        };
        maps = finished.map(|one| Some(Arc::new(one.map)));
        assert!(store.publish(&manifest, |_| {}).unwrap().durable);
        from = Some(manifest.id());
    }
    path
}

fn flip_in_last_byte(file: &Path) {
    let mut bytes = std::fs::read(file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(file, bytes).unwrap();
}

#[test]
fn the_records_of_the_commands_are_as_documented() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    store_of_a_job(dir);
    for (name, arguments) in [
        ("ls", &["ls", "job.ckpt", "--json"][..]),
        ("show", &["show", "job.ckpt", "2", "--json"]),
        ("verify", &["verify", "job.ckpt", "--json"]),
        ("status", &["status", "job.ckpt", "--json"]),
        ("rm", &["rm", "job.ckpt", "1", "--json"]),
        ("rm_all", &["rm", "job.ckpt", "--all", "--json"]),
    ] {
        let output = ckpt(dir, arguments);
        assert_eq!(code(&output), 0, "{name}: {}", told(&output));
        assert_golden(name, dir, &output);
    }
    assert!(!dir.join("job.ckpt").exists());
}

#[test]
fn the_record_of_a_failure_has_kind_and_message() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let output = ckpt(dir, &["ls", "nowhere", "--json"]);
    assert_eq!(code(&output), 64);
    assert_golden("error", dir, &output);
    let output = ckpt(dir, &["--json", "ls"]);
    assert_eq!(code(&output), 64);
    let record: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(record["error"]["kind"], "usage");
}

#[test]
fn latest_is_the_newest_checkpoint_that_may_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let path = store_of_a_job(dir.path());
    let latest = || {
        let output = ckpt(dir.path(), &["show", "job.ckpt", "latest", "--json"]);
        let record: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        record["result"]["checkpoint"]["epoch"].as_u64().unwrap()
    };
    assert_eq!(latest(), 2);
    let store = JobStore::open_locked(&path).unwrap();
    store.mark_bad(Epoch(2), "torn").unwrap();
    assert_eq!(latest(), 1);
    let output = ckpt(dir.path(), &["ls", "job.ckpt"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("bad") && text.contains("torn"), "{text}");
}

#[test]
fn people_see_logical_changed_and_stored_bytes_and_what_a_checkpoint_needs() {
    let dir = tempfile::tempdir().unwrap();
    store_of_a_job(dir.path());
    let tell = |arguments: &[&str]| {
        let output = ckpt(dir.path(), arguments);
        assert_eq!(code(&output), 0, "{}", told(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let list = tell(&["ls", "job.ckpt"]);
    let second = list
        .lines()
        .find(|line| line.starts_with("     2"))
        .unwrap();
    for words in ["16.0 KiB", "8.04 KiB", "1.50 ms", "450 µs", "20.0 ms  1"] {
        assert!(second.contains(words), "{words} in {second}");
    }
    assert!(
        list.contains("2 usable checkpoints of 32.1 KiB in files of"),
        "{list}"
    );
    let show = tell(&["show", "job.ckpt", "2"]);
    assert!(
        show.contains("builds on  epoch 1, with files of epochs 1"),
        "{show}"
    );
    assert!(
        show.contains("needs      epochs/000001/i0001-r00001.img of rank 1"),
        "{show}"
    );
    let show = tell(&["show", "job.ckpt", "1"]);
    assert!(show.contains("needed by  epochs 2"), "{show}");
    // What another one needs stays when its checkpoint is removed.
    tell(&["rm", "job.ckpt", "1"]);
    assert_eq!(code(&ckpt(dir.path(), &["verify", "job.ckpt"])), 0);
    let list = tell(&["ls", "job.ckpt"]);
    assert!(list.contains("of them of older checkpoints"), "{list}");
}

#[test]
fn a_damaged_file_is_told_with_all_checkpoints_that_it_costs() {
    let dir = tempfile::tempdir().unwrap();
    let path = store_of_a_job(dir.path());
    flip_in_last_byte(&path.join("epochs/000001/i0001-r00000.img"));
    let output = ckpt(dir.path(), &["verify", "job.ckpt", "--json"]);
    assert_eq!(code(&output), 65);
    let record: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let damaged = &record["result"]["damaged"];
    assert_eq!(damaged[0]["checkpoints"], serde_json::json!([1, 2]));
    let text = String::from_utf8(ckpt(dir.path(), &["verify", "job.ckpt"]).stdout).unwrap();
    assert!(text.contains("(checkpoints 1 2)"), "{text}");
}

#[test]
fn the_store_keeps_the_options_and_a_restart_changes_those_it_is_given() {
    let dir = tempfile::tempdir().unwrap();
    let recorded = || {
        let store = JobStore::open(dir.path().join("new.ckpt")).unwrap();
        let mut options = store.job().options.clone();
        options.retain(|name, _| {
            name.starts_with("every") || ["memory_bytes", "tracking", "capture"].contains(&&**name)
        });
        let told: Vec<String> = options
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        (told.join(" "), store.job().compression)
    };
    let run = "run -n 1 --store new.ckpt --every auto --every-min 5s --memory 64M --track hash --capture copy --compress 3 -- /bin/true";
    let run: Vec<&str> = run.split(' ').collect();
    assert_eq!(code(&ckpt(dir.path(), &run)), 64, "/bin/true is no solver");
    assert_eq!(
        recorded(),
        (
            "capture=copy every_auto=true every_max_ms=3600000 every_min_ms=5000 memory_bytes=67108864 tracking=hash"
                .to_owned(),
            Compression::Level(3)
        )
    );
    let restart = "restart new.ckpt --every-max 2m --capture cow --compress auto";
    let restart: Vec<&str> = restart.split(' ').collect();
    assert_eq!(code(&ckpt(dir.path(), &restart)), 64);
    assert_eq!(
        recorded(),
        (
            "capture=cow every_auto=true every_max_ms=120000 every_min_ms=5000 memory_bytes=67108864 tracking=hash"
                .to_owned(),
            Compression::Auto
        )
    );
    let restart: Vec<&str> = "restart new.ckpt --every 90s".split(' ').collect();
    ckpt(dir.path(), &restart);
    assert!(
        recorded().0.contains("every_ms=90000 memory"),
        "{:?}",
        recorded()
    );
}

#[test]
fn a_flipped_byte_is_found_named_and_has_an_exit_code_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let path = store_of_a_job(dir.path());
    flip_in_last_byte(&path.join("epochs/000002/i0002-r00001.img"));
    let output = ckpt(dir.path(), &["verify", "job.ckpt", "--json"]);
    assert_eq!(code(&output), 65);
    let record: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(record["result"]["sound"], false);
    assert_eq!(
        record["result"]["damaged"][0]["path"],
        "epochs/000002/i0002-r00001.img"
    );
    let output = ckpt(dir.path(), &["verify", "job.ckpt", "--quiet"]);
    assert_eq!(code(&output), 65);
    assert!(output.stdout.is_empty());
    assert!(told(&output).contains("1 damaged"), "{}", told(&output));
}

#[test]
fn a_store_with_checkpoints_is_not_run_over() {
    let dir = tempfile::tempdir().unwrap();
    store_of_a_job(dir.path());
    let arguments = ["run", "-n", "2", "--store", "job.ckpt", "--", "/bin/true"];
    let output = ckpt(dir.path(), &arguments);
    assert_eq!(code(&output), 64);
    let text = told(&output);
    assert!(
        text.contains("--resume") && text.contains("ckpt rm"),
        "{text}"
    );
    assert_eq!(code(&ckpt(dir.path(), &["verify", "job.ckpt"])), 0);
}

#[test]
fn resuming_with_another_number_of_ranks_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    store_of_a_job(dir.path());
    let arguments = [
        "run",
        "--resume",
        "-n",
        "3",
        "--store",
        "job.ckpt",
        "--",
        "/bin/true",
    ];
    let output = ckpt(dir.path(), &arguments);
    assert_eq!(code(&output), 64);
    assert!(told(&output).contains("has 2 ranks, not 3"));
}

#[test]
fn a_store_whose_job_never_came_to_a_checkpoint_makes_room() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let arguments = ["run", "-n", "1", "--store", "new.ckpt", "--", "/bin/true"];
        let output = ckpt(dir.path(), &arguments);
        let text = told(&output);
        assert_eq!(code(&output), 64);
        assert!(text.contains("libckpt::main"), "{text}");
    }
}

#[test]
fn a_directory_that_is_no_store_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    std::fs::create_dir(&home).unwrap();
    std::fs::write(home.join("thesis.tex"), "precious").unwrap();
    for arguments in [
        &["run", "-n", "1", "--store", "home", "--", "/bin/true"][..],
        &["rm", "home", "--all"],
        &["restart", "home"],
        &["verify", "home"],
    ] {
        let output = ckpt(dir.path(), arguments);
        assert_eq!(code(&output), 64, "{arguments:?}: {}", told(&output));
    }
    let left: Vec<_> = std::fs::read_dir(&home).unwrap().collect();
    assert_eq!(left.len(), 1);
}

#[test]
fn programs_that_can_not_be_run_are_usage_errors_that_name_them() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("data"), "no program").unwrap();
    for (program, words) in [
        ("no-such-solver-anywhere", "no such program"),
        ("./missing", "no such program"),
        ("./data", "not an executable file"),
    ] {
        let output = ckpt(
            dir.path(),
            &["run", "-n", "2", "--store", "s.ckpt", "--", program],
        );
        let text = told(&output);
        assert_eq!(code(&output), 64, "{text}");
        assert!(text.contains(words) && text.contains(program), "{text}");
        assert!(!dir.path().join("s.ckpt").exists());
    }
}

#[test]
fn impossible_numbers_are_usage_errors() {
    let dir = tempfile::tempdir().unwrap();
    for (options, words) in [
        (&["-n", "0"][..], "0 is not in"),
        (&["-n", "2", "--procs", "3"], "3 processes for 2 ranks"),
        (
            &["-n", "2", "--idle-procs", "5000"],
            "5000 is not in 0..=4096",
        ),
        (&["-n", "2", "--slot-size", "3M"], "power of two"),
        (&["-n", "2", "--every", "0s"], "longer than nothing"),
        (&["-n", "2", "--keep", "0"], "0 is not in"),
        (&["-n", "2", "--compress", "99"], "from 1 to 22"),
        (&["-n", "2", "--memory", "31M"], "less than 32.0 MiB"),
        (&["-n", "2", "--track", "soft"], "auto, kernel, hash, off"),
        (&["-n", "2", "--capture", "fork"], "auto, cow, copy"),
        (&["-n", "2", "--every-min", "5s"], "give --every auto"),
        (
            &["-n", "2", "--every", "auto", "--every-max", "5s"],
            "--every-min (10.0 s) is longer than --every-max (5.00 s)",
        ),
        (&["-n", "2", "--heartbeat-timeout", "1ms"], "busy machine"),
    ] {
        let mut arguments = vec!["run", "--store", "s.ckpt"];
        arguments.extend(options);
        arguments.extend(["--", "/bin/true"]);
        let output = ckpt(dir.path(), &arguments);
        let text = told(&output);
        assert_eq!(code(&output), 64, "{options:?}: {text}");
        assert!(text.contains(words), "{options:?}: {text}");
        assert!(!dir.path().join("s.ckpt").exists());
    }
}

#[test]
fn commands_to_a_job_that_does_not_run_say_so() {
    let dir = tempfile::tempdir().unwrap();
    store_of_a_job(dir.path());
    let output = ckpt(dir.path(), &["checkpoint", "job.ckpt"]);
    assert_eq!(code(&output), 69);
    assert!(told(&output).contains("not running"));
    for arguments in [
        &["ps", "job.ckpt"][..],
        &["drain", "job.ckpt", "node1"],
        &["drain", "job.ckpt", "1", "--wait"],
    ] {
        let output = ckpt(dir.path(), arguments);
        assert_eq!(code(&output), 69, "{arguments:?}");
        assert!(told(&output).contains("not running"), "{arguments:?}");
    }
    // What is drained is in the store.
    let output = ckpt(dir.path(), &["undrain", "job.ckpt", "node1"]);
    assert_eq!(code(&output), 69);
    assert!(told(&output).contains("node1 is not drained: no node is drained"));
    let path = dir.path().join("job.ckpt");
    let mut store = store::JobStore::open_locked(&path).unwrap();
    let mut job = store.job().clone();
    coord::record::set_drained_nodes(&mut job, &["node1".to_owned(), "node2".to_owned()]);
    store.replace_job(job).unwrap();
    drop(store);
    let output = ckpt(dir.path(), &["undrain", "job.ckpt", "node1", "--json"]);
    assert_eq!(code(&output), 0, "{}", told(&output));
    let output = ckpt(dir.path(), &["undrain", "job.ckpt", "node3"]);
    assert_eq!(code(&output), 69);
    assert!(
        told(&output).contains("drained are node2"),
        "{}",
        told(&output)
    );
    let output = ckpt(dir.path(), &["status", "job.ckpt"]);
    assert_eq!(code(&output), 0);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("not running; the last checkpoint is epoch 2"),
        "{text}"
    );
}

#[test]
fn a_store_in_use_is_neither_removed_nor_run_twice() {
    let dir = tempfile::tempdir().unwrap();
    let path = store_of_a_job(dir.path());
    let _held = JobStore::open_locked(&path).unwrap();
    for arguments in [
        &["rm", "job.ckpt", "--all"][..],
        &["rm", "job.ckpt", "1"],
        &["restart", "job.ckpt"],
    ] {
        let output = ckpt(dir.path(), arguments);
        assert_eq!(code(&output), 69, "{arguments:?}");
        assert!(told(&output).contains("in use"), "{}", told(&output));
    }
}

#[test]
fn launchers_and_nodes_that_are_not_there_are_usage_errors_that_name_them() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("hosts"), "node1\nnode2 slots=none\n").unwrap();
    let refused = |options: &[&str], word: &str| {
        let mut arguments = vec!["run", "-n", "2", "--store", "s"];
        arguments.extend(options);
        arguments.extend(["--", "/bin/true"]);
        let output = Command::new(env!("CARGO_BIN_EXE_ckpt"))
            .current_dir(dir.path())
            .env("PATH", dir.path())
            .env_remove("SLURM_JOB_ID")
            .args(&arguments)
            .output()
            .unwrap();
        assert_eq!(code(&output), 64, "{}", told(&output));
        assert!(told(&output).contains(word), "{}", told(&output));
        assert!(!dir.path().join("s").exists(), "no store is made for it");
    };
    refused(
        &["--launch", "mpirun"],
        "mpirun: no such launcher on the path",
    );
    refused(&["--launch", "srun"], "SLURM_JOB_ID is not set");
    refused(
        &["--launch", "start {ranks} {program}"],
        "{ranks} is no placeholder",
    );
    let start = ["--launch", "start {program}"];
    let with = |more: &[&'static str]| [&start[..], more].concat();
    refused(
        &with(&["--hostfile", "nobody"]),
        "nobody: the hostfile can't be read",
    );
    refused(&with(&["--hostfile", "hosts"]), "hosts, line 2");
    refused(
        &with(&["--nodes", "2"]),
        "--nodes of 2 nodes, and there are 1",
    );
    refused(&with(&["--label"]), "--label");
    refused(
        &with(&["--control-address", "0.0.0.0"]),
        "--control-address",
    );
}

#[test]
fn a_store_can_be_taken_over_from_a_coordinator_that_hangs_and_from_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = store_of_a_job(dir.path());
    // Held by this program, which is no coordinator.
    let held = JobStore::open_locked(&path).unwrap();
    let output = ckpt(dir.path(), &["restart", "job.ckpt", "--take-over"]);
    assert_eq!(code(&output), 69, "{}", told(&output));
    assert!(
        told(&output).contains("no coordinator"),
        "{}",
        told(&output)
    );
    drop(held);
}

#[test]
fn help_and_version_are_no_errors() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(code(&ckpt(dir.path(), &["--help"])), 0);
    assert_eq!(code(&ckpt(dir.path(), &["run", "--help"])), 0);
    assert_eq!(code(&ckpt(dir.path(), &["--version"])), 0);
    assert_eq!(code(&ckpt(dir.path(), &["no-such-command"])), 64);
}

/// Every name that `value` uses for a field.
fn fields(value: &serde_json::Value, names: &mut std::collections::BTreeSet<String>) {
    match value {
        serde_json::Value::Object(object) => {
            for (name, value) in object {
                names.insert(name.clone());
                fields(value, names);
            }
        }
        serde_json::Value::Array(values) => values.iter().for_each(|value| fields(value, names)),
        _ => {}
    }
}

#[test]
fn the_document_names_every_option_and_every_field() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let document = std::fs::read_to_string(root.join("../docs/cli.md")).unwrap();
    let mut names = std::collections::BTreeSet::new();
    for entry in std::fs::read_dir(root.join("tests/golden")).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        fields(&serde_json::from_str(&text).unwrap(), &mut names);
    }
    let dir = tempfile::tempdir().unwrap();
    let run = ckpt(
        dir.path(),
        &[
            "run",
            "--json",
            "-n",
            "1",
            "--store",
            "s",
            "--",
            "/bin/true",
        ],
    );
    fields(&serde_json::from_slice(&run.stdout).unwrap(), &mut names);
    for command in [
        "run",
        "restart",
        "ls",
        "show",
        "verify",
        "checkpoint",
        "status",
        "rm",
    ] {
        names.insert(format!("ckpt {command}"));
        let help = ckpt(&root, &[command, "--help"]).stdout;
        for word in String::from_utf8(help).unwrap().split_whitespace() {
            if let Some(option) = word.strip_prefix("--") {
                let option: String = option
                    .chars()
                    .take_while(|letter| letter.is_ascii_lowercase() || *letter == '-')
                    .collect();
                if !option.is_empty() {
                    names.insert(format!("--{option}"));
                }
            }
        }
    }
    let missing: Vec<_> = names
        .iter()
        .filter(|name| !document.contains(name.as_str()))
        .collect();
    assert!(
        missing.is_empty(),
        "docs/cli.md does not mention {missing:?}"
    );
}
