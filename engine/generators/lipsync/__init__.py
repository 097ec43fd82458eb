"""Lips from the voice, over a portrait, a loop or another generator's frames: the architectures of Wav2Lip and MuseTalk.

Start reading at generator.py, then sound.py (what was heard), bases.py (whose face) and wav2lip.py or musetalk.py (the networks).
"""
