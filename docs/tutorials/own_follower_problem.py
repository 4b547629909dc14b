"""
Your own ``FollowerProblem``
============================
"""
