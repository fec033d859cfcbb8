package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadManifests(t *testing.T) {
	t.Parallel()
	const pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: NAME}\nspec: {containers: [{name: c}]}\n"
	dir := t.TempDir()
	write := func(path, text string) {
		t.Helper()
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("all/a.yaml", strings.Replace(pod, "NAME", "a", 1))
	write("all/deep/b.yml", strings.Replace(pod, "NAME", "b", 1))
	write("all/notes.txt", "not a manifest")
	write("none/notes.txt", "not a manifest")
	write("broken/x.yaml", "apiVersion: v1\nkind: Pod\nmetadata: [\n")
	stdin := strings.Replace(pod, "NAME", "c", 1)
	for _, c := range []struct {
		name string
		args []string
		want string // names, or what the error says
	}{
		{"a directory and all below it", []string{"all"}, "a b"},
		{"a file", []string{"all/deep/b.yml"}, "b"},
		{"several, and standard input", []string{"all", "-"}, "a b c"},
		{"nothing in it", []string{"all", "none"}, "error: no object in"},
		{"not there", []string{"typo"}, "error: no such file"},
		{"broken", []string{"broken"}, "error: x.yaml:"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var args []string
			for _, a := range c.args {
				if a != "-" {
					a = filepath.Join(dir, a)
				}
				args = append(args, a)
			}
			objects, err := readManifests(args, strings.NewReader(stdin))
			if want, bad := strings.CutPrefix(c.want, "error: "); bad {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Fatalf("error %v, want %q", err, want)
				}
				return
			}
			var names []string
			for _, o := range objects {
				names = append(names, o.Name.Name)
			}
			if got := strings.Join(names, " "); err != nil || got != c.want {
				t.Fatalf("%q, %v, want %q", got, err, c.want)
			}
		})
	}
}
