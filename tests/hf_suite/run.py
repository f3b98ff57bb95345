"""Run transformers' own model tests (ModelTesterMixin) on our LTG-BERT classes.

    python tests/hf_suite/run.py [--offline] [pytest arguments]

The tests come from the source distribution of the installed transformers (the wheel has none), are kept under build/,
and are never part of this project. With --offline nothing is downloaded: exit code 3 says that they are not there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
NEEDED = ("test_modeling_common.py", "test_configuration_common.py")
# what these import of files that the source distribution leaves out, and what an encoder does not need of them
STUBS = {
    "__init__.py": "",
    "exporters/__init__.py": "",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/__init__.py": "",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/__init__.py": "",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
}
NOT_THERE = 3


def main() -> int:
    """Fetch what is missing, run the suite in a process of its own, and return pytest's exit code."""
    arguments = sys.argv[1:]
    offline = "--offline" in arguments
    arguments = [a for a in arguments if a != "--offline"]
    folder = ROOT / "build" / "hf-suite" / version("transformers")
    if not (folder / ".complete").exists():
        if offline:
            print(f"transformers' tests are not under {folder.relative_to(ROOT)}: 'make hf-suite' fetches them")
            return NOT_THERE
        _fetch(folder)
    shutil.copy(HERE / "suite_ltg_bert.py", folder / "test_suite_ltg_bert.py")
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(folder), str(folder / "deps"), str(ROOT / "src")]),
    }
    # our own pytest settings (warnings are errors) are not meant for transformers' tests
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", str(folder), "-q", "-W", "ignore"]
    command += ["-p", "no:cacheprovider", "-rsfE", "test_suite_ltg_bert.py", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, check=False).returncode


def _fetch(folder: Path) -> None:
    """Download the source distribution, and `parameterized`, which its tests import; keep the two files needed."""
    shutil.rmtree(folder, ignore_errors=True)
    package = folder / "hf_tests"
    for name, text in STUBS.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--target", str(folder / "deps"), "parameterized>=0.9,<1"], check=True)
    source = f"transformers=={version('transformers')}"
    # the build tools are not needed to unpack, and without isolation pip does not ask for them
    build = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
    subprocess.run([*pip, "download", *build, "--dest", str(folder), source], check=True)
    archive = next(folder.glob("transformers-*.tar.gz"))
    with tarfile.open(archive) as tar:
        for member in tar:
            name = Path(member.name)
            if name.parent.name == "tests" and name.name in NEEDED and (content := tar.extractfile(member)):
                (package / name.name).write_bytes(content.read())
    archive.unlink()
    (folder / ".complete").touch()


if __name__ == "__main__":
    sys.exit(main())
