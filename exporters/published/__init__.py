"""Published weights become folders of this engine: every key by a table, every shape checked, nothing left over."""
