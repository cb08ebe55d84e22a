//! Builds the two freestanding programs that restored tasks exec, helper32 and restorer64, so that `crr` can embed
//! them. They need a linker script and flags of their own, hence a nested cargo with its own target directory.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

struct Blob {
    package: &'static str,
    target: String,
    emulation: &'static str,
    rustc: Option<String>,
}

fn main() {
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join("..");
    for path in ["shared", "images/src", "helper32", "crr/restorer64", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", root.join(path).display());
    }
    println!("cargo::rerun-if-env-changed=CRR_I686_RUSTC");
    println!("cargo::rerun-if-env-changed=CRR_I686_TARGET");
    let helper32 = Blob {
        package: "helper32",
        target: env::var("CRR_I686_TARGET").unwrap_or_else(|_| "i686-unknown-linux-musl".to_owned()),
        emulation: "-melf_i386",
        rustc: env::var("CRR_I686_RUSTC").ok(),
    };
    let restorer64 = Blob {
        package: "restorer64",
        target: "x86_64-unknown-linux-gnu".to_owned(),
        emulation: "-melf_x86_64",
        rustc: None,
    };
    require_target(&helper32);
    for blob in [helper32, restorer64] {
        build(&root, &blob);
    }
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| fail(&format!("{name} is not set: not run by cargo?")))
}

fn fail(message: &str) -> ! {
    println!("cargo::error={message}");
    exit(1);
}

/// Stops with the command to run if the compiler has no library for the target.
fn require_target(blob: &Blob) {
    let rustc = blob.rustc.clone().unwrap_or_else(|| variable("RUSTC"));
    let output = Command::new(&rustc)
        .args(["--print", "target-libdir", "--target", &blob.target])
        .output()
        .unwrap_or_else(|error| fail(&format!("{rustc}: {error}")));
    let libdir = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let has_core = std::fs::read_dir(&libdir).is_ok_and(|entries| {
        entries
            .filter_map(Result::ok)
            .any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
    });
    if !has_core {
        fail(&format!(
            "crr needs the Rust target {0}: run `rustup target add {0}` (or `ci/setup`, which also knows a way without rustup)",
            blob.target
        ));
    }
}

fn build(root: &Path, blob: &Blob) {
    let out = PathBuf::from(variable("OUT_DIR"));
    let target_dir = out.join("blobs");
    let script = root.join("shared/blob.ld");
    let mut flags = vec![
        "-Clinker=ld".to_owned(),
        "-Clinker-flavor=ld".to_owned(),
        "-Crelocation-model=pie".to_owned(),
        format!("-Clink-arg={}", blob.emulation),
        "-Clink-arg=-pie".to_owned(),
        "-Clink-arg=--no-dynamic-linker".to_owned(),
        "-Clink-arg=-nostdlib".to_owned(),
        "-Clink-arg=--build-id=none".to_owned(),
        "-Clink-arg=--hash-style=sysv".to_owned(),
        "-Clink-arg=-zmax-page-size=4096".to_owned(),
        format!("-Clink-arg=-T{}", script.display()),
    ];
    // Only musl targets bring start files of their own; others reject the flag.
    if blob.target.ends_with("musl") {
        flags.push("-Clink-self-contained=no".to_owned());
    }
    let mut cargo = Command::new(variable("CARGO"));
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        let foreign = [
            "CARGO_FEATURE_",
            "CARGO_CFG_",
            "CARGO_PKG_",
            "CARGO_PROFILE_",
            "CARGO_MANIFEST_",
            "CARGO_ENCODED_",
        ];
        let exact = [
            "RUSTFLAGS",
            "RUSTC",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTC_LINKER",
            "RUSTDOC",
            "CARGO_BUILD_TARGET",
            "CARGO_TARGET_DIR",
            "CARGO_MAKEFLAGS",
            "MAKEFLAGS",
            "TARGET",
            "HOST",
            "OUT_DIR",
            "PROFILE",
            "OPT_LEVEL",
            "DEBUG",
            "NUM_JOBS",
            "CLIPPY_ARGS",
        ];
        if foreign.iter().any(|prefix| name.starts_with(prefix)) || exact.contains(&&*name) {
            cargo.env_remove(&*name);
        }
    }
    cargo
        .current_dir(root)
        .args([
            "build",
            "--quiet",
            "--locked",
            "--profile",
            "blob",
            "-p",
            blob.package,
            "--target",
            &blob.target,
        ])
        .arg("--target-dir")
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    if let Some(rustc) = &blob.rustc {
        cargo.env("RUSTC", rustc);
    }
    let output = cargo.output().unwrap_or_else(|error| fail(&format!("cargo: {error}")));
    if !output.status.success() {
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        fail(&format!(
            "{} could not be built for {}; the compiler's words are above",
            blob.package, blob.target
        ));
    }
    let built = target_dir.join(&blob.target).join("blob").join(blob.package);
    println!("cargo::rustc-env=CRR_BLOB_{}={}", blob.package.to_uppercase(), built.display());
}
