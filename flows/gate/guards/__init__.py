"""The guards of a promotion, each a function of the case that says whether the candidate passed, in words and figures."""
