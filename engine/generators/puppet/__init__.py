"""The puppet: a portrait cut into a sheet of triangles and a few layers. Start reading at generator.py, then pose.py and paint.py."""
