"""Offline: published or trained weights become folders and graphs for the engine. Nothing here runs while someone is served.

`published`: other systems' weights · `data`: clips become a data set · `training`: a data set becomes networks · `graphs`: networks become graphs
of a backend · `portraits`: photos become a persona's portrait.
"""
