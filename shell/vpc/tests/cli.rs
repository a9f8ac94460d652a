//! The command line as a contract: help, exit status, what errors say. Needs no privilege.

#![expect(clippy::unwrap_used, reason = "a test ends by panicking")]

use std::process::{Command, Output, Stdio};

fn vpc(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vpc"))
        .args(arguments)
        .env_remove("VPC_CREDENTIAL")
        .env_remove("VPC_OUTPUT")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn every_noun_of_the_contract_has_help() {
    let nouns: &[&[&str]] = &[
        &[],
        &["server", "init"],
        &["server", "run"],
        &["server", "reflector"],
        &["server", "reflector-config"],
        &["agent", "run"],
        &["agent", "stop"],
        &["agent", "status"],
        &["agent", "l2", "stack", "create"],
        &["agent", "l2", "port", "create"],
        &["stack", "list"],
        &["port", "list"],
        &["host", "join"],
        &["host", "list"],
        &["host", "show"],
        &["host", "drain"],
        &["host", "remove"],
        &["host", "token", "create"],
        &["host", "token", "list"],
        &["host", "token", "revoke"],
        &["account", "create"],
        &["account", "list"],
        &["account", "show"],
        &["account", "delete"],
        &["create"],
        &["list"],
        &["show"],
        &["delete"],
        &["subnet", "create"],
        &["subnet", "list"],
        &["subnet", "show"],
        &["subnet", "delete"],
        &["nic", "create"],
        &["nic", "list"],
        &["nic", "show"],
        &["nic", "delete"],
        &["router", "create"],
        &["router", "list"],
        &["router", "show"],
        &["router", "attach"],
        &["router", "detach"],
        &["router", "uplink"],
        &["router", "move"],
        &["router", "standby"],
        &["router", "delete"],
        &["route", "add"],
        &["route", "list"],
        &["route", "delete"],
        &["nat", "source"],
        &["nat", "forward", "add"],
        &["nat", "forward", "list"],
        &["nat", "forward", "delete"],
        &["publicip", "create"],
        &["publicip", "list"],
        &["publicip", "show"],
        &["publicip", "attach"],
        &["publicip", "detach"],
        &["publicip", "delete"],
        &["external", "create"],
        &["external", "list"],
        &["external", "show"],
        &["external", "delete"],
        &["evpn", "peers"],
        &["evpn", "routes"],
        &["watch"],
        &["doctor"],
        &["lab", "up"],
        &["lab", "demo"],
        &["lab", "exec"],
        &["lab", "down"],
        &["lab", "status"],
        &["completion"],
    ];
    for noun in nouns {
        let mut arguments = noun.to_vec();
        arguments.push("--help");
        let output = vpc(&arguments);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{noun:?}: {}", stderr(&output));
        assert!(text.contains("Examples:"), "{noun:?}:\n{text}");
    }
}

/// What is typed, and what is said of it.
#[test]
fn errors_name_the_object_the_reason_and_the_remedy() {
    let nowhere = "--credential=/nonexistent/admin.toml";
    let cases: &[(&[&str], &str)] = &[
        (
            &["list", nowhere],
            "error: reading credential file /nonexistent/admin.toml: No such file or directory (os error 2)\n\
             hint: name a credential with --credential or VPC_CREDENTIAL; `vpc server init` writes \
             /etc/vpc/admin.toml on the management host\n",
        ),
        (
            &["create", "blue", "--cidr", "10.4.1.7/24"],
            "error: creating vpc blue: 10.4.1.7/24 has bits set beyond /24: did you mean 10.4.1.0/24?\n",
        ),
        (
            &["create", "Blue", "--cidr", "10.4.0.0/16"],
            "error: creating vpc Blue: \"Blue\" is not a name: only a-z, 0-9 and - may be used\n",
        ),
        (
            &["subnet", "create", "web", "--cidr", "10.4.1.0/24"],
            "error: \"web\": this path has too few parts\nhint: write it as in blue/web\n",
        ),
        (
            &["router", "create", "gw", "--subnet", "web"],
            "error: \"gw\": this path has too few parts\nhint: write it as in blue/gw\n",
        ),
        (
            &[
                "external",
                "create",
                "ext",
                "--bridge",
                "br-ext",
                "--cidr",
                "198.51.100.1/24",
            ],
            "error: creating external network ext: 198.51.100.1/24 has bits set beyond /24: did you \
             mean 198.51.100.0/24?\n",
        ),
        (
            &["agent", "status", "--socket", "/nonexistent/agent.sock"],
            "error: connecting to /nonexistent/agent.sock: No such file or directory (os error 2); \
             is the agent running?\n\
             hint: start it with `vpc agent run` or systemctl start vpc-agent; \
             /nonexistent/agent.sock needs root\n",
        ),
        (
            &["agent", "run", "--config", "/nonexistent/agent.toml"],
            "error: reading /nonexistent/agent.toml: No such file or directory (os error 2)\n",
        ),
        (
            &[
                "host",
                "join",
                "--server",
                "192.0.2.1:7443",
                "--token",
                "x",
                "--host-credential",
                "/nonexistent/host.toml",
            ],
            "error: --token: this is not a join token: copy the whole text that `vpc host token` \
             printed, ID.SECRET.FINGERPRINT\n",
        ),
        (
            &["lab", "exec", "--name", "no-such-lab", "c1", "--", "true"],
            "error: lab no-such-lab: it is not up\n\
             hint: bring it up with `vpc lab up --name no-such-lab`\n",
        ),
        (
            &["lab", "up", "--name", "../x"],
            "error: \"../x\" is not a name: only a-z, 0-9 and - may be used\n",
        ),
        (
            &["lab", "up", "--name", "no-such-lab", "--transport", "vxlan"],
            "error: --transport: \"vxlan\" is not a transport: kernel or tap\n",
        ),
        (
            &["lab", "up", "--name", "no-such-lab", "--speaker", "bird"],
            "error: --speaker: \"bird\" is not a speaker: builtin or frr\n",
        ),
    ];
    for (arguments, said) in cases {
        let output = vpc(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert_eq!(stderr(&output), *said, "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn words_that_are_no_command_end_with_2() {
    let cases: &[&[&str]] = &[
        &["frobnicate"],
        &[
            "nic",
            "create",
            "blue/web/a1",
            "--host",
            "c1",
            "--attach",
            "bridge:x",
        ],
        &[
            "nic",
            "create",
            "blue/web/a1",
            "--host",
            "c1",
            "--attach",
            "tap",
            "--mac",
            "zz",
        ],
        &[
            "subnet",
            "create",
            "blue/web",
            "--cidr",
            "10.4.1.0/24",
            "--vlan",
            "0",
        ],
        &[
            "subnet",
            "create",
            "blue/web",
            "--cidr",
            "10.4.1.0/24",
            "--vlan",
            "4095",
        ],
        &[
            "subnet",
            "create",
            "blue/web",
            "--cidr",
            "10.4.1.0/24",
            "--vni",
            "0",
        ],
        &[
            "subnet",
            "create",
            "blue/web",
            "--cidr",
            "10.4.1.0/24",
            "--vni",
            "16777216",
        ],
        &[
            "create",
            "blue",
            "--cidr",
            "10.4.0.0/16",
            "--encoding",
            "morse",
        ],
        &["list", "-o", "yaml"],
        &["router", "create", "blue/gw", "--nat"],
        &["route", "add", "blue/gw", "10.9.0.0/16"],
        &["route", "add", "blue/gw", "10.9.0.0", "--blackhole"],
        &["nat", "source", "blue/gw", "snat"],
        &[
            "nat",
            "forward",
            "add",
            "blue/gw",
            "icmp",
            "80",
            "10.4.1.2:80",
        ],
        &[
            "nat",
            "forward",
            "add",
            "blue/gw",
            "tcp",
            "80-70",
            "10.4.1.2:80",
        ],
        &["publicip", "attach", "www"],
        &["external", "create", "ext", "--bridge", "br-ext"],
        &["external", "create", "ext", "--bridge", "br/ext", "--dhcp"],
    ];
    for arguments in cases {
        let output = vpc(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&output).starts_with("error: "), "{arguments:?}");
    }
}

#[test]
fn a_reader_that_leaves_is_no_panic() {
    for arguments in [&["completion", "bash"][..], &["--help"], &["doctor"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = Command::new(env!("CARGO_BIN_EXE_vpc"))
            .args(arguments)
            .stdout(writer)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        let said = stderr(&output);
        assert!(!said.contains("panicked"), "{arguments:?}: {said}");
        assert!(
            output.status.code().is_some(),
            "{arguments:?}: {}",
            output.status
        );
    }
}

#[test]
fn all_bad_settings_are_told_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("agent.toml");
    std::fs::write(&file, "colour = \"red\"\nroles = [\"king\"]\n").unwrap();
    let output = vpc(&[
        "agent",
        "run",
        "--config",
        file.to_str().unwrap(),
        "--socket",
        "here",
    ]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1));
    for key in ["colour (from ", "roles (from ", "socket (from --socket)"] {
        assert!(said.contains(key), "{said}");
    }
}

#[test]
fn completion_knows_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let output = vpc(&["completion", shell]);
        let script = String::from_utf8_lossy(&output.stdout);
        assert!(
            script.contains("subnet") && script.contains("doctor"),
            "{shell}"
        );
    }
}

#[test]
fn a_reflector_that_nobody_can_run_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("server.toml");
    let refused = |text: &str, flags: &[&str]| {
        std::fs::write(&config, format!("listen = \"127.0.0.1:0\"\n{text}")).unwrap();
        let run = ["server", "run", "--config", config.to_str().unwrap()];
        let output = vpc(&[&run, flags].concat());
        assert!(!output.status.success());
        stderr(&output)
    };
    let said = refused("", &["--reflector", "bird"]);
    assert!(
        said.contains("\"bird\" is not builtin, frr or external"),
        "{said}"
    );
    let said = refused("reflector_kind = \"bird\"", &[]);
    assert!(
        said.contains("\"bird\" is not builtin, frr or external"),
        "{said}"
    );
    let said = refused("", &["--reflector", "external"]);
    assert!(said.contains("reflectors is empty"), "{said}");
    let said = refused("", &["--reflector", "frr"]);
    assert!(said.contains("reflector is not set"), "{said}");
    let said = refused("", &["--reflector", "192.0.2.1"]);
    assert!(said.contains("asn is not"), "{said}");
}
