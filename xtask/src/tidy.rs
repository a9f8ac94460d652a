//! The structure that docs/architecture.md tells, kept true.
//!
//! Guards boundaries, not taste: what a pure crate may depend on, who may name SQL, gRPC and
//! netlink, that every module says what it is, that tests do not sleep.

use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};

/// All that a crate under `core/` may depend on beside other crates there.
const CORE_MAY_USE: &[&str] = &[
    "base64",
    "bytes",
    "crc32c",
    "hmac",
    "ipnet",
    "raft",
    "rustbgpd-fsm",
    "rustbgpd-wire",
    "serde",
    "serde_json",
    "sha2",
    "slog",
    "thiserror",
];

/// Words that only the crates beside them may have among their dependencies.
const ONLY_IN: &[(&str, &[&str])] = &[
    ("sqlx", &["store"]),
    ("tonic-prost", &["api"]),
    ("tonic-prost-build", &["api"]),
    ("protox", &["api"]),
    ("io-uring", &["disk"]),
    ("netlink-sys", &["linux"]),
    ("netlink-packet-core", &["linux"]),
    ("netlink-packet-route", &["linux"]),
];

/// Checks the repository whose root this is; prints each finding.
pub(crate) fn check(root: &Path) -> Result<()> {
    let mut findings = Vec::new();
    for folder in ["core", "shell", "test"] {
        for entry in fs::read_dir(root.join(folder)).with_context(|| format!("listing {folder}"))? {
            let path = entry?.path();
            if path.join("Cargo.toml").is_file() {
                dependencies(&path, folder == "core", root, &mut findings)?;
                sources(&path, root, &mut findings)?;
            }
        }
    }
    for finding in &findings {
        println!("{finding}");
    }
    match findings.len() {
        0 => Ok(()),
        n => bail!("{n} finding(s); docs/architecture.md says why these hold"),
    }
}

fn dependencies(krate: &Path, pure: bool, root: &Path, findings: &mut Vec<String>) -> Result<()> {
    let manifest = krate.join("Cargo.toml");
    let text = fs::read_to_string(&manifest)?;
    let name = file_name(krate);
    let mut section = "";
    for line in text.lines().map(str::trim) {
        if let Some(heading) = line.strip_prefix('[') {
            section = heading.trim_end_matches(']');
            continue;
        }
        if !matches!(section, "dependencies" | "build-dependencies") || line.starts_with('#') {
            continue;
        }
        let end = line.find(['.', ' ', '=']).unwrap_or(line.len());
        let dependency = &line[..end];
        if dependency.is_empty() {
            continue;
        }
        let ours = root.join("core").join(dependency).is_dir();
        if pure && !ours && !CORE_MAY_USE.contains(&dependency) {
            findings.push(format!(
                "{}: {name} is pure and may not depend on {dependency}",
                show(&manifest, root)
            ));
        }
        let restricted = ONLY_IN.iter().find(|(word, _)| *word == dependency);
        if let Some((_, allowed)) = restricted
            && !allowed.contains(&name.as_str())
        {
            findings.push(format!(
                "{}: only {} may depend on {dependency}",
                show(&manifest, root),
                allowed.join(", ")
            ));
        }
    }
    Ok(())
}

fn sources(krate: &Path, root: &Path, findings: &mut Vec<String>) -> Result<()> {
    let mut pending = vec![krate.join("src"), krate.join("tests")];
    while let Some(dir) = pending.pop() {
        let Ok(entries) = fs::read_dir(&dir) else {
            continue;
        };
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                source(&path, root, findings)?;
            }
        }
    }
    Ok(())
}

fn source(path: &Path, root: &Path, findings: &mut Vec<String>) -> Result<()> {
    let text = fs::read_to_string(path)?;
    let at = show(path, root);
    let is_tests =
        file_name(path).contains("tests") || path.components().any(|c| c.as_os_str() == "tests");
    let first = text
        .lines()
        .find(|line| !line.trim().is_empty())
        .unwrap_or_default();
    if !first.starts_with("//!") && !is_tests {
        findings.push(format!(
            "{at}: the module does not say what it is (//! on its first line)"
        ));
    }
    for (number, line) in text.lines().enumerate() {
        let place = || format!("{at}:{}", number + 1);
        let code = line.split("//").next().unwrap_or_default();
        if code.contains("todo!(") || code.contains("unimplemented!(") || code.contains("#[ignore")
        {
            findings.push(format!("{}: unfinished", place()));
        }
        if is_tests && (code.contains("thread::sleep(") || code.contains("time::sleep(")) {
            findings.push(format!(
                "{}: a test that sleeps; wait for a state instead",
                place()
            ));
        }
    }
    Ok(())
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn show(path: &Path, root: &Path) -> String {
    path.strip_prefix(root)
        .map_or_else(|_| PathBuf::from(path), Path::to_owned)
        .display()
        .to_string()
}
