"""Where a session's remembered state lives: on the device, in the host's memory, on disk; and how much of it an edit moves.

files      one file of tensors, written piece by piece, mapped into memory when read
coding     values and step memories as JSON and tensors
folder     a whole session in a folder: saved crash-safely, loaded and verified
"""
