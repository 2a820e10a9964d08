"""The picture of a run's history."""

from training import plot


def test_a_history_is_drawn_and_a_run_without_one_is_not(tmp_path):
    assert plot.draw(tmp_path) is None
    (tmp_path / "history.csv").write_text("epoch,learning_rate,loss,val_loss\n0,0.1,3.5,3.7\n1,0.05,2.5,3.1\n")
    drawn = plot.draw(tmp_path)
    assert drawn == tmp_path / "history.png"
    before = drawn.read_bytes()
    assert before.startswith(b"\x89PNG") and len(before) > 5000
    (tmp_path / "history.csv").write_text("epoch,learning_rate,loss\n0,0.1,3.5\n")
    assert plot.draw(tmp_path).read_bytes() != before
