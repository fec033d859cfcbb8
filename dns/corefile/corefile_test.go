package corefile_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/netctl/netctl/dns/corefile"
	"github.com/netctl/netctl/dns/options"
)

var update = flag.Bool("update", false, "write what is made of the Corefiles instead of comparing it")

// TestImport compares what is made of each Corefile with the file beside it.
func TestImport(t *testing.T) {
	t.Parallel()
	paths, err := filepath.Glob("testdata/*.corefile")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no Corefiles: %v", err)
	}
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			r, err := corefile.Import(string(text))
			if err != nil {
				t.Fatal(err)
			}
			var b strings.Builder
			y, err := r.Options.Encode()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := options.Decode(y); err != nil {
				t.Errorf("the options cannot be read: %v", err)
			}
			fmt.Fprintf(&b, "%s--- flags\n%s\n--- notes\n", y, strings.Join(r.Flags, "\n"))
			for _, n := range r.Notes {
				fmt.Fprintln(&b, n)
			}
			want := strings.TrimSuffix(path, ".corefile") + ".want"
			if *update {
				if err := os.WriteFile(want, []byte(b.String()), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			have, err := os.ReadFile(want)
			if err != nil {
				t.Fatal(err)
			}
			if string(have) != b.String() {
				t.Errorf("got:\n%s\nwant:\n%s", b.String(), have)
			}
		})
	}
}

func TestKubeadmIsTakenWhole(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("testdata/kubeadm.corefile")
	if err != nil {
		t.Fatal(err)
	}
	r, err := corefile.Import(string(text))
	if err != nil {
		t.Fatal(err)
	}
	if list := r.Refused(nil); len(list) > 0 {
		t.Errorf("refused: %v", list)
	}
}

func TestUnreadable(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		". {":                                 "} is missing",
		".":                                   "want {",
		"}":                                   "} without {",
		"{ }":                                 "without a name",
		". {\n  {\n }\n}":                     "line 2",
		". {\n log \"x\n}":                    "line 2: a quote",
		". {\n" + strings.Repeat("a {\n", 20): "deep",
		". {\n forward . " + strings.Repeat("192.0.2.1 ", 16) + "\n}": "at most 15",
	} {
		if _, err := corefile.Import(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want %q in it", text, err, want)
		}
	}
}

func TestSnippetsThatImportThemselves(t *testing.T) {
	t.Parallel()
	r, err := corefile.Import("(a) {\nimport a\nimport a\n}\n. {\nimport a\n}\n")
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Refused(nil)) == 0 {
		t.Error("nothing was refused")
	}
}

// FuzzImport: no Corefile breaks it, and every line that a server has a directive in
// has a note.
func FuzzImport(f *testing.F) {
	for _, name := range []string{"kubeadm", "rich"} {
		text, err := os.ReadFile("testdata/" + name + ".corefile")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	f.Add(". {\n \"a b\" { } \n}")
	f.Fuzz(func(t *testing.T, text string) {
		r, err := corefile.Import(text)
		if err != nil {
			return
		}
		if err := r.Options.Validate(); err != nil {
			t.Errorf("invalid options: %v", err)
		}
		lines, err := corefile.DirectiveLines(text)
		if err != nil {
			t.Fatal(err)
		}
		noted := map[int]bool{}
		for _, n := range r.Notes {
			noted[n.Line] = true
		}
		for _, l := range lines {
			if !noted[l] && len(r.Notes) < corefile.MaxExpanded {
				t.Errorf("nothing was said of line %d", l)
			}
		}
	})
}
