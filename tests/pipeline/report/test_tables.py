"""Tables of the report and of DVC's plots."""

from pipeline.report.tables import without_markup


def test_no_name_is_code_in_the_page_of_plots():
    rows = [{"actual": "</script><img src=x onerror=alert(1)>", "predicted": "3 < 4", "count": 2}]
    assert without_markup(rows) == [
        {"actual": "‹/script>‹img src=x onerror=alert(1)>", "predicted": "3 ‹ 4", "count": 2}
    ]
