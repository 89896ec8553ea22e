"""The published pages describe every study as the code does."""

from pathlib import Path

import pytest

from sigmoid_attention.lab.page import EARLIER
from sigmoid_attention.studies.registry import CLAIM_STUDIES, claim_study

DOCS = Path(__file__).parents[3] / "docs"
PAGES = {"mixtures": "mixtures-results.md", "theory": "theory-results.md"}


@pytest.mark.parametrize("group", CLAIM_STUDIES)
def test_the_page_has_the_claim_source_and_rule_of_every_study(group):
    page = (DOCS / PAGES[group]).read_text()
    generated = page.split("<!-- studies -->")[1].split("<!-- /studies -->")[0]
    sections = generated.split('<a id="')[1:]
    for name, section in zip(CLAIM_STUDIES[group], sections, strict=True):
        study = claim_study(name)
        figure = f"{Path(PAGES[group]).stem}/{name}.svg"
        assert section.startswith(
            f'{name}"></a>\n\n## {study.title}\n\n**Claim.** {study.claim}\n\n'
            f"**Source.** {study.source}\n\n"
        )
        assert f"\n\n**Command.** `sigmoid-attention studies run {name}`" in section
        # A section that was kept, because nothing has been measured by a newer rule, says so.
        assert f"\n\n**Rule.** {study.rule}\n\n**Command.**" in section or EARLIER in section
        assert f"![{study.title}]({figure})" in section and (DOCS / figure).exists()
