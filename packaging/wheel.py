#!/usr/bin/env python3
"""Builds the wheel, or packs a binary into one, installs it into a fresh environment and runs the quickstart from it.

    packaging/wheel.py                            maturin builds a release
    packaging/wheel.py --binary target/debug/tune     an existing binary, for trying; the wheel is for this machine alone
    packaging/wheel.py --features cuda,vulkan     with maturin
    packaging/wheel.py --out DIR --no-run         where the wheel goes (default: target/wheels); build alone

The environment is thrown away. Fails if the wheel has 100 MB or more, or if what it installs does not train.
"""

import argparse
import base64
import hashlib
import os
import pathlib
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
NAME = "tune-cli"
LARGEST = 100_000_000


def version():
    return re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)[1]


def packed(binary, out):
    """A wheel of a binary that exists, in the layout that maturin gives `bindings = "bin"`."""
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    stem = f"{NAME.replace('-', '_')}-{version()}"
    wheel = out / f"{stem}-py3-none-{platform}.whl"
    info = f"{stem}.dist-info"
    script = f"{stem}.data/scripts/tune" + (".exe" if os.name == "nt" else "")
    metadata = f"Metadata-Version: 2.4\nName: {NAME}\nVersion: {version()}\nLicense-Expression: MIT OR Apache-2.0\n"
    files = {
        script: binary.read_bytes(),
        f"{info}/METADATA": metadata.encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: packaging/wheel.py\nRoot-Is-Purelib: false\nTag: py3-none-{platform}\n".encode(),
    }
    record = []
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (0o100755 if name == script else 0o100644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            record.append(f"{name},sha256={digest},{len(content)}")
        record.append(f"{info}/RECORD,,\n")
        archive.writestr(f"{info}/RECORD", "\n".join(record))
    return wheel


def built(features, out):
    """A wheel by maturin."""
    command = [sys.executable, "-m", "maturin", "build", "--release", "--locked", "--out", str(out)]
    subprocess.run(command + (["--features", features] if features else []), cwd=ROOT, check=True)
    return max(out.glob("*.whl"), key=lambda path: path.stat().st_mtime)


def tried(wheel, work):
    """Installs the wheel into a fresh environment and walks the README's first steps with it."""
    environment = work / "env"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    scripts = environment / ("Scripts" if os.name == "nt" else "bin")
    pip = [str(scripts / "python"), "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", str(wheel)]
    subprocess.run(pip, check=True)
    # The scripts' folder first, as an activated environment has it; nothing else of ours.
    variables = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}

    def tune(*words, folder):
        print("$ tune", *words, flush=True)
        begun = time.monotonic()
        done = subprocess.run(["tune", *words], cwd=folder, env=variables, text=True, stdout=subprocess.PIPE)
        print(done.stdout, end="")
        print(f"# {time.monotonic() - begun:.1f} s", flush=True)
        if done.returncode:
            sys.exit(f"tune {' '.join(words)} exits with {done.returncode}")
        return done.stdout

    if f" {version()} " not in tune("--version", folder=work) + " ":
        print("note: `tune --version` is of another version")
    tune("cp", "quickstart", "demo", folder=work)
    demo = work / "demo"
    tune("run", "quickstart.toml", folder=demo)
    answer = tune("generate", "runs/quickstart", "What does the baker do?", folder=demo)
    if not answer.strip():
        sys.exit("the adapter answers nothing")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=pathlib.Path)
    parser.add_argument("--features", default="")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "target" / "wheels")
    parser.add_argument("--no-run", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    wheel = packed(arguments.binary, arguments.out) if arguments.binary else built(arguments.features, arguments.out)
    size = wheel.stat().st_size
    print(f"{wheel}: {size / 1e6:.1f} MB")
    if size >= LARGEST:
        sys.exit(f"a wheel has less than {LARGEST / 1e6:.0f} MB")
    if not arguments.no_run:
        with tempfile.TemporaryDirectory() as work:
            tried(wheel, pathlib.Path(work))


main()
