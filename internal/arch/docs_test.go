package arch_test

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// document is one Markdown file.
type document struct {
	path string // from the top of the tree, with slashes
	text string
}

func documents(t *testing.T) []document {
	t.Helper()
	var out []document
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && name != root && strings.HasPrefix(d.Name(), ".") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(name, ".md") {
			return nil
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		out = append(out, document{path: filepath.ToSlash(rel), text: string(text)})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/architecture.md"} {
		if !slices.ContainsFunc(out, func(d document) bool { return d.path == want }) {
			t.Errorf("%s is missing", want)
		}
	}
	return out
}

// forbidden lists words that praise or promise instead of telling, and marks of
// unfinished text.
var forbidden = regexp.MustCompile(`(?i)\b(blazing\w*|lightning[- ]fast|cutting[- ]edge|world[- ]class|seamless(ly)?|` +
	`effortless(ly)?|enterprise[- ]grade|next[- ]gen(eration)?|state[- ]of[- ]the[- ]art|revolutionary|game[- ]changing|` +
	`battle[- ]tested|best[- ]in[- ]class|powerful|leverag(e|es|ing)|coming soon|lorem ipsum|TODO|FIXME|XXX|TBD)\b`)

func TestDocumentsTellPlainly(t *testing.T) {
	t.Parallel()
	for _, d := range documents(t) {
		for i, line := range strings.Split(d.text, "\n") {
			if word := forbidden.FindString(line); word != "" {
				t.Errorf("%s:%d: %q: say what it does, with a number if there is one", d.path, i+1, word)
			}
		}
	}
}

var links = regexp.MustCompile(`\]\(([^)#]+)(#[^)]*)?\)`)

// TestDocumentsLinkToWhatExists: a relative link leads to a file of the tree.
func TestDocumentsLinkToWhatExists(t *testing.T) {
	t.Parallel()
	for _, d := range documents(t) {
		for _, m := range links.FindAllStringSubmatch(d.text, -1) {
			target := m[1]
			if strings.Contains(target, "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(root, path.Join(path.Dir(d.path), target))); err != nil {
				t.Errorf("%s links to %s, which does not exist", d.path, target)
			}
		}
	}
}

var makeTargets = regexp.MustCompile("`make ([a-z][a-z0-9-]*)")

// TestDocumentsNameRealTargets: every `make TARGET` in the documents exists.
func TestDocumentsNameRealTargets(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	makefile := "\n" + string(text)
	for _, d := range documents(t) {
		for _, m := range makeTargets.FindAllStringSubmatch(d.text, -1) {
			if !strings.Contains(makefile, "\n"+m[1]+":") {
				t.Errorf("%s speaks of `make %s`, which the Makefile does not have", d.path, m[1])
			}
		}
	}
}

// TestArchitectureNamesEveryPackage: the map has a line for every package, and
// none for packages that are gone.
func TestArchitectureNamesEveryPackage(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join(root, "docs/architecture.md"))
	if err != nil {
		t.Fatal(err)
	}
	s := mustSource(t)
	row := regexp.MustCompile("(?m)^\\| `([a-z0-9/]+)` \\|")
	named := map[string]bool{}
	for _, m := range row.FindAllStringSubmatch(string(text), -1) {
		named[m[1]] = true
		if s.packages[m[1]] == nil {
			t.Errorf("docs/architecture.md names package %s, which does not exist", m[1])
		}
	}
	for name := range s.packages {
		if !named[name] {
			t.Errorf("docs/architecture.md has no line for package %s", name)
		}
	}
}
