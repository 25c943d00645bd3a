"""Agents on the Hugging Face Hub: pushed with what a reader needs, loaded without running anybody's code.

``push`` prepares and sends a folder, ``card`` writes and reads its model card, ``agent_file`` is an agent as weights
and plain values, ``load`` makes a run folder of the Zoo's from a download, of which it believes nothing.
"""
