package overlay_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/netctl/netctl/overlay"
)

func TestLoadOrCreateKey(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "made", "key")
	first, err := overlay.LoadOrCreateKey(path)
	if err != nil {
		t.Fatal(err)
	}
	again, err := overlay.LoadOrCreateKey(path)
	if err != nil || again != first || first.Public() != again.Public() {
		t.Errorf("second load: %v, same %v", err, again == first)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 1 {
		t.Errorf("directory holds %v, %v", left, err)
	}
}

func TestLoadOrCreateKeyAtOnce(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "key")
	keys := make([]overlay.PrivateKey, 16)
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() {
			var err error
			if keys[i], err = overlay.LoadOrCreateKey(path); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, k := range keys {
		if k != keys[0] {
			t.Fatal("two callers got different keys")
		}
	}
}

func TestBrokenKeyFile(t *testing.T) {
	t.Parallel()
	good := filepath.Join(t.TempDir(), "good")
	if _, err := overlay.LoadOrCreateKey(good); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		text string
		mode fs.FileMode
		ok   bool
	}{
		{"complete", string(text), 0o600, true},
		{"without newline", strings.TrimSpace(string(text)), 0o400, true},
		{"empty", "", 0o600, false},
		{"torn", string(text[:20]), 0o600, false},
		{"garbage", strings.Repeat("?", 44), 0o600, false},
		{"zero", strings.Repeat("A", 43) + "=", 0o600, false},
		{"two keys", string(text) + string(text), 0o600, false},
		{"huge", strings.Repeat("x", 1<<12), 0o600, false},
		{"readable by all", string(text), 0o644, false},
	} {
		path := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(path, []byte(tt.text), tt.mode); err != nil {
			t.Fatal(err)
		}
		_, err := overlay.LoadOrCreateKey(path)
		if (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, err)
		}
		if err != nil && !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %q does not name the file", tt.name, err)
		}
		if after, _ := os.ReadFile(path); string(after) != tt.text {
			t.Errorf("%s: the file was changed", tt.name)
		}
	}
	if _, err := overlay.LoadOrCreateKey(t.TempDir()); err == nil {
		t.Error("a directory is a key")
	}
	if _, err := overlay.LoadOrCreateKey(filepath.Join(good, "below-a-file")); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("below a file: %v", err)
	}
}

func TestPrivateKeyDoesNotPrint(t *testing.T) {
	t.Parallel()
	k := newKey(t)
	plain := fmt.Sprintf("%v %+v %#v %s %v", k, k, k, k, k.LogValue())
	if plain != strings.TrimSpace(strings.Repeat("(private key) ", 5)) {
		t.Errorf("prints as %q", plain)
	}
}

func FuzzParseKey(f *testing.F) {
	f.Add("xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=") // wg(8), example
	f.Add("")
	f.Add(strings.Repeat("A", 43) + "=")
	f.Add(strings.Repeat("/", 43) + "=")
	f.Fuzz(func(t *testing.T, s string) {
		k, err := overlay.ParseKey(s)
		if err != nil {
			return
		}
		if k.IsZero() || k.String() != s {
			t.Errorf("%q became %q", s, k)
		}
	})
}
