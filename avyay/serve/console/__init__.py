"""The web console at the gateway's `/`: server-rendered, no scripts, nothing from elsewhere, for signed-in readers."""
