//! Volumes over the lab: made, attached, moved and deleted by the command line, used by foreign clients, while
//! processes are killed and hosts cut off.

mod allocation;
mod contract;
mod damage;
mod filesystem;
mod lost;
mod recovery;

use lab::{Lab, text_of};
use serde_json::Value;

fn up() -> Lab {
    Lab::up_with(&["--hosts", "m1,c1,c2"])
}

/// Makes a volume of three replicas.
fn create(lab: &Lab) -> Value {
    lab.admin("volume create data --size 32MiB --wait")
}

fn attach(lab: &Lab, host: &str) -> String {
    let shown = lab.admin(&format!("volume attach data --host {host} --wait"));
    assert_eq!(shown["attached_host"], host);
    let uri = shown["uri"].as_str().expect("it is served").to_owned();
    assert!(
        uri.starts_with("nbd+unix:///data?socket=/run/vpc/volumes/"),
        "{uri}"
    );
    uri
}

/// Writes what nobody could guess; its checksum.
fn write(lab: &Lab, host: &str, uri: &str) -> String {
    let line = format!(
        "head -c 16M /dev/urandom > /run/image && nbdcopy /run/image '{uri}' && sha256sum < /run/image"
    );
    lab.sh(host, &line)
}

fn read(lab: &Lab, host: &str, uri: &str) -> String {
    lab.sh(
        host,
        &format!("nbdcopy '{uri}' - | head -c 16M | sha256sum"),
    )
}

/// Ends a host's storage process, once there is one: it may have been started just now.
fn kill_storage(lab: &Lab, host: &str) {
    let pid = lab.eventually("a storage process runs", || {
        let status = lab.try_sh(host, "vpc storage status -o json");
        let shown: Value = serde_json::from_slice(&status.stdout).unwrap_or_default();
        shown["pid"].as_u64().ok_or_else(|| text_of(&status))
    });
    lab.sh(host, &format!("kill -9 {pid}"));
}

/// All replicas work, and have the same contents, those of now: the hosts' own processes are asked, since what the
/// management server knows may be older than the last write. The number of the last entry that they have.
fn wait_healthy(lab: &Lab) -> u64 {
    lab.eventually("all replicas are equal", || {
        let shown = lab.admin("volume show data");
        let replicas = shown["replicas"].as_array().expect("it has replicas");
        let now = replicas.iter().map(|replica| {
            let host = replica["host_name"].as_str().unwrap_or_default();
            let look = lab.try_sh(host, "vpc storage show -o json");
            let look: Value = serde_json::from_slice(&look.stdout).unwrap_or_default();
            let volume = shown["id"].as_str().unwrap_or_default();
            let replica = &look["replicas"][volume];
            (replica["applied"].as_u64(), replica["digest"].clone())
        });
        let now: Vec<_> = now.collect();
        let same = now.windows(2).all(|two| two[0] == two[1]);
        match now.first() {
            Some((Some(applied), _)) if shown["state"] == "healthy" && same => Ok(*applied),
            _ => Err(format!("{shown}, and the hosts say {now:?}")),
        }
    })
}

#[test]
fn a_volume_goes_where_it_is_attached_and_comes_back_when_it_was_deleted() {
    let lab = up();
    let made = create(&lab);
    assert_eq!(made["state"], "healthy");
    assert_eq!(made["replicas"].as_array().map(Vec::len), Some(3));
    let uri = attach(&lab, "c1");
    let written = write(&lab, "c1", &uri);
    let socket = uri.split_once("socket=").expect("a socket").1;
    let mode = lab.sh("c1", &format!("stat -c '%a %U' {socket}"));
    assert_eq!(mode.trim(), "600 root");

    let moved = attach(&lab, "c2");
    assert_eq!(read(&lab, "c2", &moved), written);
    lab.eventually("it is served on c1 no more", || {
        let gone = lab.try_sh("c1", &format!("test ! -e {socket}"));
        gone.status.success().then_some(()).ok_or(text_of(&gone))
    });
    let refused = lab.refused("volume delete data");
    assert!(
        refused.contains("is attached to host c2: detach it first"),
        "{refused}"
    );
    lab.admin("volume detach data --wait");
    lab.sh("m1", "vpc volume delete data");
    assert_eq!(lab.admin("volume show data")["state"], "deleted");
    let refused = lab.refused("volume attach data --host c1");
    assert!(
        refused.contains("is deleted: restore it first"),
        "{refused}"
    );
    lab.admin("volume restore data");
    let uri = attach(&lab, "m1");
    assert_eq!(read(&lab, "m1", &uri), written);
    wait_healthy(&lab);

    let refused = lab.refused("volume create five --size 1MiB --replicas 5");
    assert!(refused.contains("3 of 3 hosts with a disk"), "{refused}");
    let refused = lab.refused("volume create large --size 10GiB");
    assert!(refused.contains("0 of 3 hosts with a disk"), "{refused}");
    let refused = lab.refused("volume create odd --size 10GB");
    assert!(refused.contains("is not a size"), "{refused}");
}

#[test]
fn what_was_written_outlives_the_leaders_process_and_the_agents() {
    let lab = up();
    create(&lab);
    let uri = attach(&lab, "c1");
    let written = write(&lab, "c1", &uri);

    // The agent has no part in IO.
    let fio = format!(
        "fio --name=load --ioengine=nbd --uri='{uri}' --rw=randwrite --bs=4k --iodepth=4 --offset=16m --size=8m --io_size=2m --verify=crc32c --do_verify=1"
    );
    let load = lab.spawn(
        "c1",
        &["sh", "-c", &format!("cd /run && {fio} > /run/fio.log 2>&1")],
    );
    lab.kill("c1", "agent");
    lab.start("c1", "agent");
    let mut load = load;
    let done = load.wait().expect("fio ends");
    assert!(done.success(), "{}", lab.sh("c1", "cat /run/fio.log"));

    // The leader is where the volume is attached.
    lab.eventually("the leader is on c1", || {
        let shown = lab.json("c1", "vpc storage show -o json");
        let mut replicas = shown["replicas"].as_object().expect("replicas").values();
        let leads = replicas.any(|replica| replica["role"] == "leader");
        leads.then_some(()).ok_or_else(|| shown.to_string())
    });
    kill_storage(&lab, "c1");
    let elsewhere = attach(&lab, "c2");
    assert_eq!(read(&lab, "c2", &elsewhere), written);
    wait_healthy(&lab);

    for host in ["m1", "c1", "c2"] {
        kill_storage(&lab, host);
    }
    // It is attached again by itself, where it was.
    lab.eventually("it is served again", || {
        let info = lab.try_sh("c2", &format!("nbdinfo --size '{elsewhere}'"));
        info.status.success().then_some(()).ok_or(text_of(&info))
    });
    assert_eq!(read(&lab, "c2", &elsewhere), written);
    wait_healthy(&lab);
}

#[test]
fn a_host_that_is_cut_off_serves_nothing_old() {
    let lab = up();
    create(&lab);
    let uri = attach(&lab, "c1");
    let written = write(&lab, "c1", &uri);
    let cut = "nft add table inet cut; nft 'add chain inet cut in { type filter hook input priority 0; }'; \
               nft 'add chain inet cut out { type filter hook output priority 0; }'; \
               for port in sport dport; do for way in in out; do nft add rule inet cut $way tcp $port 7445 drop; done; done";
    lab.sh("c1", cut);
    // The others go on without it, with a client of their own.
    let elsewhere = attach(&lab, "c2");
    assert_eq!(read(&lab, "c2", &elsewhere), written);
    let second = write(&lab, "c2", &elsewhere);
    lab.sh("c1", "nft delete table inet cut");
    wait_healthy(&lab);
    let back = attach(&lab, "c1");
    assert_eq!(read(&lab, "c1", &back), second);
}
