//! Ranks on two machines, as network namespaces play them: a slow link, and one that is cut. `.ci/nightly` runs it; it needs
//! root, `ip`, `tc` and Open MPI (MPICH would use shared memory between namespaces).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::ended;
use crate::ranks::{Mpi, installed, long, ranks_of, wait_for_checkpoint};

/// Two namespaces with a link between them.
struct Link;

fn ip(arguments: &str) -> bool {
    Command::new("ip").args(arguments.split(' ')).output().is_ok_and(|output| output.status.success())
}

impl Link {
    /// `None` where they cannot be made.
    fn new(rate: &str) -> Option<Self> {
        let link = Self;
        for name in ["tune0", "tune1"] {
            if !ip(&format!("netns add {name}")) {
                return None;
            }
        }
        assert!(ip("link add tune-a netns tune0 type veth peer name tune-b netns tune1"));
        for (name, device, address) in
            [("tune0", "tune-a", "10.77.0.1/24"), ("tune1", "tune-b", "10.77.0.2/24")]
        {
            assert!(ip(&format!("-n {name} addr add {address} dev {device}")));
            assert!(
                ip(&format!("-n {name} link set {device} up")) && ip(&format!("-n {name} link set lo up"))
            );
            let shape = format!("qdisc add dev {device} root tbf rate {rate} burst 256kb latency 400ms");
            assert!(ip(&format!("netns exec {name} tc {shape}")));
        }
        Some(link)
    }
}

/// Bytes that the first namespace sent over the link.
fn sent() -> u64 {
    let counter = "/sys/class/net/tune-a/statistics/tx_bytes";
    let read = Command::new("ip").args(["netns", "exec", "tune0", "cat", counter]).output().unwrap();
    String::from_utf8(read.stdout).unwrap().trim().parse().unwrap()
}

impl Drop for Link {
    fn drop(&mut self) {
        for name in ["tune0", "tune1"] {
            ip(&format!("netns del {name}"));
        }
    }
}

/// The launcher in the first namespace; ranks of the second start by `agent`.
fn across(mpi: &Mpi, agent: &Path, run: &Command) -> Command {
    fs::write(agent, "#!/bin/sh\necho $$ >\"$0.pid\"\nshift\nexec ip netns exec tune1 sh -c \"$*\"\n")
        .unwrap();
    fs::set_permissions(agent, fs::Permissions::from_mode(0o700)).unwrap();
    let mut command = Command::new("ip");
    command.args(["netns", "exec", "tune0"]).arg(&mpi.launcher);
    command.args(["--host", "10.77.0.1,10.77.0.2", "--mca", "plm_rsh_agent"]).arg(agent);
    command.args(["--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", "10.77.0.0/24"]);
    command.args(["--mca", "oob_tcp_if_include", "10.77.0.0/24", "-x", "RAYON_NUM_THREADS"]);
    command.args(run.get_args());
    command.envs(run.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
}

#[test]
#[ignore = "needs root and half a minute; .ci/nightly runs it"]
fn a_slow_link_changes_no_byte_and_a_cut_one_ends_every_rank() {
    let Some(mpi) = installed().into_iter().find(Mpi::is_open_mpi) else {
        return println!("skipped: no Open MPI");
    };
    let Some(_link) = Link::new("100mbit") else {
        return println!("skipped: no network namespaces can be made here");
    };
    let bench = long();
    let agent = bench.path().join("agent");
    bench.run("whole");
    let (code, error) = ended(across(&mpi, &agent, &mpi.command(&bench, "apart", 2, &[])).output().unwrap());
    assert_eq!(code, 0, "{error}");
    bench.assert_same("whole", "apart");
    // Half of the gradient goes to the other rank, and half of the sum.
    let steps = bench.metrics("apart").last().unwrap()["step"].as_u64().unwrap();
    let adapter = bench.adapter("apart");
    let header = u64::from_le_bytes(adapter[..8].try_into().unwrap());
    let expected = steps * (adapter.len() as u64 - 8 - header);
    let sent = sent();
    println!("{sent} bytes were sent for {steps} steps, {expected} by arithmetic");
    assert!(
        (expected..expected * 5 / 4 + (1 << 20)).contains(&sent),
        "{sent} bytes, {expected} by arithmetic"
    );

    let run = mpi.command(&bench, "cut", 2, &["--silence", "3s"]);
    // A file: what the launcher started on the other machine outlives it, and would hold a pipe open.
    let errors = bench.path().join("errors");
    let mut command = across(&mpi, &agent, &run);
    command.stdout(Stdio::null()).stderr(fs::File::create(&errors).unwrap());
    let mut child = command.spawn().unwrap();
    wait_for_checkpoint(&bench, "cut", &mut child);
    assert!(ip("-n tune1 link set tune-b down"));
    let began = Instant::now();
    while !ranks_of(&bench, "cut").is_empty() {
        assert!(began.elapsed() < Duration::from_secs(15), "a rank outlives its deadline");
        thread::sleep(Duration::from_millis(50));
    }
    // The launcher itself waits for the other machine, where its agent waits for it.
    child.kill().unwrap();
    child.wait().unwrap();
    let started = fs::read_to_string(agent.with_extension("pid")).unwrap();
    let kill = format!("pkill -KILL -P {0}; kill -KILL {0}", started.trim());
    _ = Command::new("sh").args(["-c", &kill]).stderr(Stdio::null()).status();
    let errors = fs::read_to_string(&errors).unwrap();
    assert!(errors.contains("no answer from the other ranks for 3 s"), "{errors}");
    let (code, error) = bench.output("cut", &["--resume"]);
    assert_eq!(code, 0, "{error}");
    bench.assert_same("whole", "cut");
}
