"""Published claims, put to the test: what a study is, how its tasks run, what its page says."""
