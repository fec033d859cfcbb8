package overlay

import "testing"

func TestBreaksGSO(t *testing.T) {
	t.Parallel()
	for release, want := range map[string]bool{
		"6.18.44-fc": false, "7.0.0-rc1": true, "7.0.12-generic": true, "7.1.0": true, "7.1.4": true, "7.1.5": false,
		"7.2.0": false, "8.0.1": false, "5.4": false, "7.0": true, "": false, "x": false, "7": false,
	} {
		if got := breaksGSO(release); got != want {
			t.Errorf("%q: got %v, want %v", release, got, want)
		}
	}
}
