"""Identity systems as they were published, one file each (`exporters.portraits.contract`)."""
