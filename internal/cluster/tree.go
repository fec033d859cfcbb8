package cluster

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/netctl/netctl/internal/model"
)

// racyAge is how old a file must be when it is read for its time stamp to tell
// of a later change; coarse kernel and network file system clocks stay below.
const racyAge = 2 * time.Second

// tree is the manifests of a directory, read: which files there are, what each
// said when it was last read, and the index of it all. Not safe for concurrent
// use.
//
// A file with a broken document keeps, as long as it is broken, those objects
// that it had before and that are not among its good documents: netctl cannot
// know whether they are the broken ones or deleted, and a half-saved file must
// not take running pods off the network. A restart knows only what is good now.
type tree struct {
	root    string
	watch   func(dir string) // called for each directory before it is listed
	files   map[string]*file // by path
	dirs    map[string]bool
	index   *index
	ignored map[string]string // unknown kind -> where it was seen first
}

// file is what is known of one manifest file.
type file struct {
	size     int64
	modTime  time.Time
	mode     fs.FileMode
	racy     bool // read so soon after its change that the time stamp proves nothing
	sum      [sha256.Size]byte
	entries  []*entry
	problems []Problem
}

func newTree(root string, watch func(string)) *tree {
	return &tree{
		root: root, watch: watch, files: map[string]*file{}, dirs: map[string]bool{},
		index: newIndex(), ignored: map[string]string{},
	}
}

// scan compares the whole directory with what is known and reads what changed.
// When the root itself cannot be read everything stays as it is.
func (t *tree) scan() error {
	if _, err := os.ReadDir(t.root); err != nil {
		return err
	}
	seen := map[string]bool{}
	t.walk(t.root, seen, false)
	for path := range t.files {
		if !seen[path] {
			t.drop(path)
		}
	}
	for dir := range t.dirs {
		if !seen[dir] {
			delete(t.dirs, dir)
		}
	}
	return nil
}

// walk reads the files below dir. With force it does not trust time stamps.
func (t *tree) walk(dir string, seen map[string]bool, force bool) {
	seen[dir] = true
	t.dirs[dir] = true
	t.watch(dir)
	list, err := os.ReadDir(dir)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) { // not readable: what is known below stays
			for path := range t.files {
				seen[path] = seen[path] || strings.HasPrefix(path, dir+string(filepath.Separator))
			}
		}
		return
	}
	for _, e := range list {
		path := filepath.Join(dir, e.Name())
		switch {
		case hidden(path):
		case e.IsDir():
			t.walk(path, seen, force)
		case isManifest(path):
			seen[path] = true
			t.read(path, force)
		}
	}
}

// refresh looks again at one path that something happened to.
func (t *tree) refresh(path string) {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		t.remove(path)
	case err != nil:
	case hidden(path):
		// A swapped link such as ..data may stand behind every file beside it.
		if info.Mode()&fs.ModeSymlink != 0 {
			t.walk(filepath.Dir(path), map[string]bool{}, true)
		}
	case info.IsDir():
		t.walk(path, map[string]bool{}, true)
	case isManifest(path):
		t.read(path, true)
	}
}

// remove forgets a path and, when it was a directory, everything below it.
func (t *tree) remove(path string) {
	if path == t.root {
		return // the whole directory is gone: keep the last State, scan will tell
	}
	t.drop(path)
	if !t.dirs[path] {
		return
	}
	below := path + string(filepath.Separator)
	for p := range t.files {
		if strings.HasPrefix(p, below) {
			t.drop(p)
		}
	}
	maps.DeleteFunc(t.dirs, func(d string, _ bool) bool { return d == path || strings.HasPrefix(d, below) })
}

// drop forgets one file.
func (t *tree) drop(path string) {
	if f := t.files[path]; f != nil {
		t.index.replace(f.entries, nil)
		delete(t.files, path)
	}
}

// read reads one file if it changed.
func (t *tree) read(path string, force bool) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		t.drop(path)
		return
	}
	old := t.files[path]
	if old == nil {
		old = &file{}
	}
	if err != nil || !info.Mode().IsRegular() {
		t.refuse(path, old, cmp.Or(err, errors.New("not a regular file")))
		return
	}
	if !force && !old.racy && old.size == info.Size() && old.modTime.Equal(info.ModTime()) && old.mode == info.Mode() {
		return
	}
	data, err := readFile(path)
	if err != nil {
		t.refuse(path, old, err)
		return
	}
	f := &file{size: info.Size(), modTime: info.ModTime(), mode: info.Mode(), sum: sha256.Sum256(data)}
	f.racy = time.Since(f.modTime) < racyAge
	if t.files[path] != nil && f.sum == old.sum {
		f.entries, f.problems = old.entries, old.problems
		t.files[path] = f
		return
	}
	f.entries, f.problems = t.parse(path, data)
	f.entries = merge(old.entries, f.entries, len(f.problems) > 0)
	t.index.replace(old.entries, f.entries)
	t.files[path] = f
}

// refuse notes that a file cannot be read; what it said before stays.
func (t *tree) refuse(path string, old *file, err error) {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		err = pe.Err
	}
	t.files[path] = &file{
		racy: true, entries: old.entries,
		problems: []Problem{{File: t.rel(path), Text: "cannot be read: " + err.Error()}},
	}
}

// readFile reads a file up to one byte more than may be.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var b bytes.Buffer
	_, err = b.ReadFrom(io.LimitReader(f, maxFileSize+1))
	return b.Bytes(), err
}

// parse decodes and converts the documents of a file.
func (t *tree) parse(path string, data []byte) ([]*entry, []Problem) {
	name := t.rel(path)
	docs, problems := decodeFile(data, name)
	var entries []*entry
	for _, d := range docs {
		k := kindOf(d)
		if k == kindNode && isPatch(path) {
			k = kindNodePatch
		}
		if k == kindUnknown || k == kindDeployment {
			if _, known := t.ignored[d.kind]; !known && len(t.ignored) < maxIgnored {
				t.ignored[d.kind] = fmt.Sprintf("%s:%d", name, d.line)
			}
			continue
		}
		value, err := d.toModel(k)
		switch {
		case errors.Is(err, errIgnored):
		case err != nil:
			problems = append(problems, Problem{File: name, Line: d.line, Text: d.describe() + ": " + err.Error()})
		default:
			entries = append(entries, &entry{
				kind: k, name: model.Name{Namespace: d.namespace, Name: d.name},
				file: name, line: d.line, item: d.item, value: value,
			})
		}
	}
	return entries, problems
}

// maxIgnored bounds the notes on unknown kinds.
const maxIgnored = 1000

// merge returns the entries of a file that was read again: those that are as
// they were keep their value, so that pointers tell what changed. In a broken
// file the objects that are missing stay.
func merge(old, now []*entry, broken bool) []*entry {
	type key struct {
		kind kind
		name model.Name
	}
	was := make(map[key]*entry, len(old))
	for _, e := range old {
		was[key{e.kind, e.name}] = e
	}
	out := make([]*entry, 0, len(now))
	for _, e := range now {
		k := key{e.kind, e.name}
		if o := was[k]; o != nil {
			if reflect.DeepEqual(o.value, e.value) {
				e.value = o.value
			}
			if *o == *e {
				e = o
			}
			delete(was, k)
		}
		out = append(out, e)
	}
	if broken {
		for _, e := range old {
			if was[key{e.kind, e.name}] == e {
				out = append(out, e)
			}
		}
	}
	return out
}

// problems returns everything that is wrong now, in order.
func (t *tree) problems() []Problem {
	out := t.index.duplicates()
	for _, f := range t.files {
		out = append(out, f.problems...)
	}
	slices.SortFunc(out, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Text, b.Text))
	})
	return out
}

// rel returns a path as messages show it.
func (t *tree) rel(path string) string {
	if r, err := filepath.Rel(t.root, path); err == nil {
		return r
	}
	return path
}

// hidden reports whether a path is none of ours: editors', Kubernetes' and our
// own temporary files begin with a dot.
func hidden(path string) bool { return strings.HasPrefix(filepath.Base(path), ".") }

// isManifest reports whether a file's name is that of a manifest.
func isManifest(path string) bool {
	if hidden(path) {
		return false
	}
	switch filepath.Ext(path) {
	case ".yaml", ".yml", ".json":
		return true
	default:
		return false
	}
}

// isPatch reports whether a file holds node patches: node-<name>.patch.yaml.
func isPatch(path string) bool {
	base := filepath.Base(path)
	base = strings.TrimSuffix(base, filepath.Ext(base))
	return strings.HasPrefix(base, "node-") && strings.HasSuffix(base, ".patch")
}
