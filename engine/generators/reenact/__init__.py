"""Single-pass reenactment: the portrait's volume is made once, and every frame only moves it (the LivePortrait architecture)."""
