"""What is measured of a prior: whether its networks are what they are said to be, and its scales."""
