"""Schemathesis over the API's own document: every route, what it takes and what it must refuse.

Usage: api_fuzzer.py BASE_URL REPORT
"""

import os
import sys

import schemathesis
from schemathesis.cli import schemathesis as run_cli

# Of the checks, those that hold an answer to the document.
CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
]


@schemathesis.hook
def map_body(context, body):
    """Any name but the loaded model's is a 404 before anything else of the body counts."""
    if isinstance(body, dict) and isinstance(body.get("model"), str):
        body["model"] = "default"
    return body


def main():
    base_url, report = sys.argv[1:]
    config = os.path.join(os.path.dirname(os.path.abspath(__file__)), "schemathesis.toml")
    # What it remembers of this run belongs to this run.
    os.chdir(os.path.dirname(os.path.abspath(report)))
    arguments = ["--config-file", config, "run", base_url + "/api-doc/openapi.json", "--url", base_url]
    arguments += ["--checks", ",".join(CHECKS)]
    arguments += ["--phases", "examples,coverage,fuzzing,stateful"]
    # The same cases every time: a failure here is a failure there.
    arguments += ["--generation-deterministic"]
    arguments += ["--max-examples", os.environ.get("API_FUZZER_EXAMPLES", "10"), "--workers", "1"]
    arguments += ["--request-timeout", "60", "--continue-on-failure", "--no-color", "--warnings", "off"]
    arguments += ["--suppress-health-check", "all"]
    arguments += ["--report", "json", "--report-json-path", report]
    run_cli(arguments)


if __name__ == "__main__":
    main()
