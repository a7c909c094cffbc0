//! The start of a process: fixed addresses, the identity that is compared, slots that can't be had.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use libckpt_rank::identity::program_identity;
use libckpt_rank::{Resumed, Slot, startup};
use protocol::control::ProgramIdentity;
use protocol::ids::Rank;
use protocol::slots::{ORIGIN, SlotLayout};

use crate::child::{
    Directory, FullCopy, from_digits, layout, prepare, print, role, text, to_digits,
};
use crate::tangle::tangle;
use crate::{roles, tests};

tests![
    every_start_has_the_same_identity_however_it_was_started,
    a_start_at_random_addresses_keeps_its_arguments_and_leaves_no_trace,
    a_copy_of_the_program_elsewhere_may_join,
    a_preloaded_library_is_named_as_a_difference,
    a_kernel_that_refuses_fixed_addresses_is_reported_or_got_around,
    a_fixed_thread_has_its_thread_locals_at_the_same_address_every_time,
    an_address_space_limit_is_reported_with_the_remedy,
    a_taken_address_range_is_reported_with_its_owner,
    a_second_layout_in_one_process_is_refused,
    a_process_ends_with_its_parent,
];

roles![
    identified,
    arguments_told,
    started,
    fixed_thread,
    limited,
    obstructed,
    layouts_mixed,
    orphaned,
    orphan,
];

/// Before the program starts: randomisation off, and the stack limit that goes with it.
fn fix_addresses(command: &mut Command) -> &mut Command {
    // SAFETY: two system calls.
    unsafe {
        command.pre_exec(|| {
            let limit = libc::rlimit {
                rlim_cur: 8 << 20,
                rlim_max: libc::RLIM_INFINITY,
            };
            libc::setrlimit(libc::RLIMIT_STACK, &raw const limit);
            libc::personality(libc::ADDR_NO_RANDOMIZE as libc::c_ulong);
            Ok(())
        })
    }
}

fn limit_stack(command: &mut Command, bytes: u64) -> &mut Command {
    // SAFETY: a system call.
    unsafe {
        command.pre_exec(move || {
            let limit = libc::rlimit {
                rlim_cur: bytes,
                rlim_max: libc::RLIM_INFINITY,
            };
            libc::setrlimit(libc::RLIMIT_STACK, &raw const limit);
            Ok(())
        })
    }
}

fn identity_of(command: &mut Command) -> ProgramIdentity {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    from_digits(&text(&output.stdout)).unwrap()
}

fn every_start_has_the_same_identity_however_it_was_started() {
    let random = identity_of(&mut role("identified", &[]));
    let fixed = identity_of(fix_addresses(&mut role("identified", &[])));
    let long = "x".repeat(50_000);
    let large =
        identity_of(limit_stack(&mut role("identified", &[&long]), 64 << 20).env("LONG", &long));
    let unlimited = identity_of(limit_stack(
        &mut role("identified", &[]),
        libc::RLIM_INFINITY,
    ));
    for other in [&fixed, &large, &unlimited] {
        protocol::identity::compare(&random, other).unwrap();
    }
    assert!(
        random.objects[0].path.ends_with(
            std::env::current_exe()
                .unwrap()
                .file_name()
                .unwrap()
                .to_str()
                .unwrap()
        )
    );
}

fn identified(_: &[String]) {
    prepare();
    println!("{}", to_digits(&program_identity().unwrap()));
}

fn a_start_at_random_addresses_keeps_its_arguments_and_leaves_no_trace() {
    let output = role("arguments_told", &["a b", "", "ü"])
        .arg0("some/name")
        .env_clear()
        .output()
        .unwrap();
    assert_eq!(
        text(&output.stdout),
        "[\"some/name\", \"role\", \"arguments_told\", \"a b\", \"\", \"ü\"]\n\
         name\n\
         8388608\n\
         none\n",
        "{}",
        text(&output.stderr)
    );
}

fn arguments_told(_: &[String]) {
    prepare();
    println!("{:?}", std::env::args().collect::<Vec<_>>());
    print!("{}", std::fs::read_to_string("/proc/self/comm").unwrap());
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: writes into a local.
    unsafe { libc::getrlimit(libc::RLIMIT_STACK, &raw mut limit) };
    println!("{}", limit.rlim_cur);
    let traces = std::env::vars().filter(|(name, _)| name.starts_with("CKPT_"));
    println!("{}", if traces.count() == 0 { "none" } else { "some" });
}

fn a_copy_of_the_program_elsewhere_may_join() {
    let directory = Directory::new("copy");
    let copy = directory.file("a-copy-with-a-name-of-quite-another-length");
    std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    let original = identity_of(&mut role("identified", &[]));
    let copied = identity_of(Command::new(copy).args(["role", "identified"]));
    assert_ne!(original.objects[0].path, copied.objects[0].path);
    protocol::identity::compare(&original, &copied).unwrap();
}

fn a_preloaded_library_is_named_as_a_difference() {
    let plain = identity_of(&mut role("identified", &[]));
    // Any library that the program does not use.
    let library = plain
        .objects
        .iter()
        .find_map(|object| object.path.strip_suffix("libc.so.6"))
        .map(|folder| format!("{folder}libBrokenLocale.so.1"))
        .filter(|library| std::path::Path::new(library).exists());
    let Some(library) = library else {
        println!("(no library at hand to preload, or a static program)");
        return;
    };
    let preloaded = identity_of(role("identified", &[]).env("LD_PRELOAD", &library));
    let error = protocol::identity::compare(&plain, &preloaded).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("libBrokenLocale.so.1 is mapped here"),
        "{error}"
    );
}

/// Has the kernel answer personality(2) with EPERM, as a container's seccomp profile may.
fn forbid_personality() -> io::Result<()> {
    const LOAD_NUMBER: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
    const JUMP_IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    let instruction = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program = [
        instruction(LOAD_NUMBER, 0, 0, 0),
        instruction(JUMP_IF_EQUAL, 0, 1, libc::SYS_personality as u32),
        instruction(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        instruction(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the filter lives through the call, which copies it.
    unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const filter,
            ) != 0
        {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn a_kernel_that_refuses_fixed_addresses_is_reported_or_got_around() {
    let started = || {
        let mut command = role("started", &[]);
        // SAFETY: two system calls, no allocation.
        unsafe { command.pre_exec(forbid_personality) };
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let told = started();
    if cfg!(target_feature = "crt-static") {
        // Linked for a fixed address, with
        // RUSTFLAGS="-C relocation-model=static -C target-feature=+crt-static": all stays in place.
        let identities = [told, started()].map(|told| from_digits::<ProgramIdentity>(&told));
        let [first, second] = identities.map(Result::unwrap);
        protocol::identity::compare(&first, &second).unwrap();
    } else {
        assert!(
            told.starts_with("address randomisation can't be switched off (personality: Operation"),
            "{told}"
        );
        assert!(told.contains("seccomp"), "{told}");
    }
}

fn started(_: &[String]) {
    match startup::run(|| to_digits(&program_identity().unwrap())) {
        Ok(identity) => println!("{identity}"),
        Err(error) => println!("{error}"),
    }
}

fn a_fixed_thread_has_its_thread_locals_at_the_same_address_every_time() {
    let plain = print("fixed_thread", &[]);
    let output = role("fixed_thread", &[])
        .env("LD_LIBRARY_PATH", "/some/where/of/any/length".repeat(50))
        .output()
        .unwrap();
    assert_eq!(text(&output.stdout).trim_end(), plain);
    let address: u64 = plain.parse().unwrap();
    assert!(
        (ORIGIN - (16 << 20) - (1 << 20)..ORIGIN).contains(&address),
        "{address:#x}"
    );
}

/// A rank runs there as well as on the main thread.
fn fixed_thread(_: &[String]) {
    prepare();
    let address = startup::run_on_fixed_thread(|| {
        let mut slot = Slot::create(layout(1), Rank(0)).unwrap();
        slot.start(tangle);
        let mut copy = FullCopy::new();
        while let Resumed::Suspended = slot.resume() {
            copy.take(&slot).unwrap();
        }
        assert!(slot.is_finished());
        program_identity().unwrap().thread_local_address
    });
    println!("{}", address.unwrap());
    let panicked = std::panic::catch_unwind(|| startup::run_on_fixed_thread(|| panic!("there")));
    assert!(panicked.is_err());
}

fn an_address_space_limit_is_reported_with_the_remedy() {
    let told = print("limited", &[]);
    assert!(
        told.starts_with("rank 0: 68719476736 bytes of address space"),
        "{told}"
    );
    assert!(told.contains("4294967296 bytes (ulimit -v)"), "{told}");
    assert!(told.contains("--slot-size"), "{told}");
}

fn limited(_: &[String]) {
    prepare();
    let limit = libc::rlimit {
        rlim_cur: 4 << 30,
        rlim_max: 4 << 30,
    };
    // SAFETY: reads a local.
    unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) };
    let large = SlotLayout::new(1, 64 << 30, 64 << 20).unwrap();
    println!("{}", Slot::create(large, Rank(0)).unwrap_err());
    // What the message proposes helps.
    Slot::create(layout(1), Rank(0)).unwrap();
}

fn a_taken_address_range_is_reported_with_its_owner() {
    let told = print("obstructed", &[]);
    assert!(told.contains("0x10040000000-0x10080000000"), "{told}");
    assert!(
        told.contains("taken by: 10040064000-10040065000 r--p"),
        "{told}"
    );
}

fn obstructed(_: &[String]) {
    prepare();
    let layout = layout(2);
    let inside = layout.address(Rank(1)) + 100 * 4096;
    // SAFETY: maps a page where nothing is.
    let at = unsafe {
        libc::mmap(
            inside as *mut libc::c_void,
            4096,
            libc::PROT_READ,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
            -1,
            0,
        )
    };
    assert_eq!(at as u64, inside);
    Slot::create(layout, Rank(0)).unwrap();
    println!("{}", Slot::create(layout, Rank(1)).unwrap_err());
}

fn a_second_layout_in_one_process_is_refused() {
    let told = print("layouts_mixed", &[]);
    assert!(told.contains("slots of another layout"), "{told}");
}

fn layouts_mixed(_: &[String]) {
    prepare();
    let first = Slot::create(layout(2), Rank(0)).unwrap();
    println!("{}", Slot::create(layout(3), Rank(2)).unwrap_err());
    assert!(
        Slot::create(layout(2), Rank(2)).is_err(),
        "there is no rank 2"
    );
    drop(first);
    Slot::create(layout(3), Rank(2)).unwrap();
}

fn a_process_ends_with_its_parent() {
    // The orphan holds its parent's stdout, too, so the output is complete when it has ended.
    assert_eq!(print("orphaned", &[]), "bound");
}

// The child is to be left behind.
#[allow(clippy::zombie_processes)]
fn orphaned(_: &[String]) {
    let parent = std::process::id().to_string();
    let mut child = role("orphan", &[&parent])
        .stdin(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // Its name tells when it is bound to this process.
    let name = format!("/proc/{}/comm", child.id());
    while std::fs::read_to_string(&name).unwrap().trim() != "bound" {
        assert!(child.try_wait().unwrap().is_none());
        std::thread::yield_now();
    }
}

fn orphan(arguments: &[String]) {
    assert!(startup::die_with_parent(arguments[0].parse().unwrap()).unwrap());
    println!("bound");
    // SAFETY: reads a C string.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"bound".as_ptr()) };
    std::thread::sleep(std::time::Duration::from_secs(30));
    println!("and still there after its parent's end");
}
