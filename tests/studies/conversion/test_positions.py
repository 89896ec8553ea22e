"""Loss by position: the bands of a synthetic table, and an invalid run."""

import pytest
import torch

from sigmoid_attention.studies.conversion import positions


def test_a_text_is_lost_where_the_conversion_is_much_worse(monkeypatch):
    monkeypatch.setattr(positions, "BANDS", (0, 2, 5))
    parent_SN = torch.tensor([[1.0, 3.0, 2.0, 2.0], [1.0, 1.0, 4.0, 4.0], [1.0, 1.0, 3.0, 3.0]])
    added_SN = torch.tensor([[0.1, 0.1, 9.0, 9.0], [0.1, 0.1, 0.2, 0.2], [0.1, 0.1, 0.8, 0.4]])
    assert positions.table(parent_SN, parent_SN + added_SN).splitlines() == [
        "| | 0 to 1 | 2 to 4 |",
        "|---|---|---|",
        "| parent | 1.333 | 3.000 |",
        "| converted | 1.433 | 6.267 |",
        "| median over texts | 1.100 | 4.200 |",
        "| texts that are lost by 0.5 | 0 of 3 | 2 of 3 |",
    ]


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="run: there is no converted model in"):
        positions.main([str(tmp_path)])
