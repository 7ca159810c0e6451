"""Speed figures that go to results/: each against its baseline, in one process."""
