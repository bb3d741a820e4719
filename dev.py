"""Developer entry, standard library only: `python dev.py demo`, `test` or `evidence`. See --help."""

import argparse
import sys

if sys.version_info < (3, 10):
    sys.exit(f"Python 3.10 or newer is needed, this is {sys.version.split()[0]}.")


def main() -> int:
    parser = argparse.ArgumentParser(description="Set up .dev/ by itself, then run the demo or the tests.")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="run the whole story in a real ComfyUI and write the pictures")
    demo.add_argument("--serve", action="store_true", help="leave ComfyUI running and print its address")
    demo.add_argument(
        "--output", metavar="DIR", default="demo_output", help="folder for the results (demo_output)"
    )
    commands.add_parser(
        "test", help="ruff, type check and pytest; further arguments go to pytest", add_help=False
    )
    commands.add_parser(
        "evidence",
        help="the study of docs/evidence.md; further arguments go to `python -m dco_core evidence`",
        add_help=False,
    )
    known, rest = parser.parse_known_args()
    if known.command == "demo" and rest:
        parser.error(f"unknown arguments for demo: {' '.join(rest)}")

    from devtools import environment, tasks

    tasks.end_cleanly_on_sigterm()
    try:
        if known.command == "demo":
            return tasks.demo(known.output, known.serve)
        return tasks.evidence(rest) if known.command == "evidence" else tasks.test(rest)
    except environment.SetupError as error:
        print(f"setup failed: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
