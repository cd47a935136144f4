"""The table of differences that the comparisons measured."""


def pytest_terminal_summary(terminalreporter):
    rows = {}
    for report in terminalreporter.stats.get("passed", []):
        found = dict(report.user_properties)
        if "difference" in found:
            rows[found["family"]] = found["difference"]
    if rows:
        terminalreporter.section("largest difference, relative to the embedding's norm")
        for family, value in rows.items():
            terminalreporter.write_line(f"{family:40s} {value:.1e}")
