r"""Your own ``FollowerProblem``
============================
"""
