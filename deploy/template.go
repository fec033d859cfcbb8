package deploy

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"path"
	"strconv"
	"strings"
	"text/template"

	"sigs.k8s.io/yaml"
)

// functions are those of Helm that the chart may use, doing what Helm's do. A
// template that uses another fails to parse here, which keeps the chart within
// what both understand.
func functions(t *template.Template) template.FuncMap {
	return template.FuncMap{
		"default": func(fallback, v any) any {
			if truth, _ := template.IsTrue(v); truth {
				return v
			}
			return fallback
		},
		"include": func(name string, data any) (string, error) {
			var b strings.Builder
			err := t.ExecuteTemplate(&b, name, data)
			return b.String(), err
		},
		"nindent":   func(n int, s string) string { return "\n" + indent(n, s) },
		"indent":    indent,
		"quote":     func(v any) string { return strconv.Quote(fmt.Sprint(v)) },
		"sha256sum": func(s string) string { h := sha256.Sum256([]byte(s)); return hex.EncodeToString(h[:]) },
		"toJson": func(v any) (string, error) {
			b, err := json.Marshal(v)
			return string(b), err
		},
		"toYaml": func(v any) (string, error) {
			b, err := yaml.Marshal(v)
			return strings.TrimSuffix(string(b), "\n"), err
		},
	}
}

func indent(n int, s string) string {
	pad := strings.Repeat(" ", n)
	return pad + strings.ReplaceAll(s, "\n", "\n"+pad)
}

// noValue is what a template prints for a value that is not there.
const noValue = "<no value>"

// parse reads all templates of the chart.
func parse() (*template.Template, error) {
	root := template.New("chart")
	root.Funcs(functions(root))
	names, err := templates()
	if err != nil {
		return nil, fmt.Errorf("read the chart: %w", err)
	}
	for _, name := range names {
		text, err := chartFiles.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("read the chart: %w", err)
		}
		if _, err := root.New(path.Base(name)).Parse(string(text)); err != nil {
			return nil, fmt.Errorf("read the chart: %w", err)
		}
	}
	return root, nil
}

// execute renders every template file that makes objects.
func execute(data map[string]any) (map[string]string, error) {
	root, err := parse()
	if err != nil {
		return nil, err
	}
	names, err := templates()
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, name := range names {
		base := path.Base(name)
		if path.Ext(base) != ".yaml" {
			continue // helpers, and the notes that Helm prints
		}
		var b strings.Builder
		if err := root.ExecuteTemplate(&b, base, data); err != nil {
			return nil, fmt.Errorf("render the chart: %w", err)
		}
		if strings.Contains(b.String(), noValue) {
			return nil, fmt.Errorf("render the chart: %s prints a value that is not there", base)
		}
		out[base] = b.String()
	}
	return out, nil
}
