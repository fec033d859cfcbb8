package arch_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// module is the path that go.mod gives the project.
const module = "github.com/netctl/netctl"

// root is the top of the source tree, seen from this package.
const root = "../.."

// file is one Go file of the tree.
type file struct {
	path    string // from the top of the tree, with slashes
	test    bool
	ast     *ast.File
	imports []string
	lines   int // lines that hold code: neither blank nor comment only
	code    map[int]bool
}

// pkg is a folder with Go files; its name is the path from the top of the tree.
type pkg struct {
	name  string
	files []*file
}

// tree is the parsed source tree.
type tree struct {
	fset     *token.FileSet
	packages map[string]*pkg
}

// source parses the tree once for all tests.
var source = sync.OnceValues(load)

func mustSource(t *testing.T) *tree {
	t.Helper()
	s, err := source()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func load() (*tree, error) {
	t := &tree{fset: token.NewFileSet(), packages: map[string]*pkg{}}
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := d.Name()
		if d.IsDir() {
			if name != root && (strings.HasPrefix(base, ".") || base == "testdata" || base == "bin" || base == "dist") {
				return filepath.SkipDir
			}
			if _, err := os.Stat(filepath.Join(name, "go.mod")); err == nil && name != root {
				return filepath.SkipDir // a module of its own
			}
			return nil
		}
		if !strings.HasSuffix(base, ".go") || strings.HasPrefix(base, ".") {
			return nil
		}
		return t.add(name)
	})
	return t, err
}

func (t *tree) add(name string) error {
	text, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	parsed, err := parser.ParseFile(t.fset, name, text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	rel, err := filepath.Rel(root, name)
	if err != nil {
		return err
	}
	f := &file{path: filepath.ToSlash(rel), test: strings.HasSuffix(name, "_test.go"), ast: parsed, code: map[int]bool{}}
	for _, spec := range parsed.Imports {
		p, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return err
		}
		f.imports = append(f.imports, p)
	}
	f.count(t.fset, text)
	dir := path.Dir(f.path)
	if t.packages[dir] == nil {
		t.packages[dir] = &pkg{name: dir}
	}
	t.packages[dir].files = append(t.packages[dir].files, f)
	return nil
}

// count finds the lines that hold code.
func (f *file) count(fset *token.FileSet, text []byte) {
	comment := map[int]bool{} // lines that lie wholly inside a comment
	for _, group := range f.ast.Comments {
		for _, c := range group.List {
			from, to := fset.Position(c.Pos()), fset.Position(c.End())
			for n := from.Line; n <= to.Line; n++ {
				comment[n] = true
			}
			before := strings.TrimSpace(string(text[from.Offset-from.Column+1 : from.Offset]))
			if before != "" {
				comment[from.Line] = false
			}
		}
	}
	for i, line := range strings.Split(string(text), "\n") {
		if strings.TrimSpace(line) != "" && !comment[i+1] {
			f.code[i+1] = true
			f.lines++
		}
	}
}

// between counts the lines of code from one position to another.
func (t *tree) between(f *file, from, to token.Pos) int {
	n := 0
	for line := t.fset.Position(from).Line; line <= t.fset.Position(to).Line; line++ {
		if f.code[line] {
			n++
		}
	}
	return n
}

// internalName turns an import path into the package's name in the tree.
func internalName(imported string) (string, bool) {
	return strings.CutPrefix(imported, module+"/")
}

// standard reports whether an import path is the standard library's.
func standard(imported string) bool {
	first, _, _ := strings.Cut(imported, "/")
	return !strings.Contains(first, ".")
}
