package cluster

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	apijson "k8s.io/apimachinery/pkg/util/json"
	"sigs.k8s.io/yaml"
)

// Bounds on what a manifest file may be. A file is read into memory whole.
const (
	maxFileSize  = 64 << 20
	maxListDepth = 4
	maxName      = 253 // RFC 1123 subdomain, as the API server allows
)

// document is one Kubernetes object of a file, still JSON.
type document struct {
	apiVersion, kind string
	namespace, name  string
	file             string
	line             int // where the document begins
	item             int // 1-based position in a List, 0 outside one
	json             []byte
}

// describe names the object for a message.
func (d document) describe() string {
	s := d.kind + " " + d.name
	if d.namespace != "" {
		s = d.kind + " " + d.namespace + "/" + d.name
	}
	if d.item > 0 {
		s += fmt.Sprintf(" (item %d of a list)", d.item)
	}
	return s
}

// into decodes the document into a Kubernetes object. Unknown fields are
// ignored, as a server of another version may have more; field names are
// case-sensitive, as for the API server.
func (d document) into(v any) error {
	err := apijson.Unmarshal(d.json, v)
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		have, field := e.Value, e.Field
		if have == "bool" && e.Type.Kind() == reflect.String {
			have += " (YAML reads y, n, yes, no, on, off as one; quote it)"
		}
		if field == "" {
			field = "document"
		}
		return fmt.Errorf("%s: have %s, want %s", field, have, jsonKind(e.Type))
	}
	return errors.New(strings.TrimPrefix(strings.Join(strings.Fields(err.Error()), " "), "json: "))
}

// jsonKind says what a Go type is in JSON.
func jsonKind(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Struct, reflect.Map:
		return "mapping"
	case reflect.Slice, reflect.Array:
		return "list"
	case reflect.Pointer:
		return jsonKind(t.Elem())
	case reflect.Int32, reflect.Int64, reflect.Float64:
		return "number"
	default:
		return t.Kind().String()
	}
}

// decodeFile splits a file into its objects. It never fails as a whole: what
// cannot be read becomes a Problem.
func decodeFile(data []byte, file string) ([]document, []Problem) {
	if len(data) > maxFileSize {
		return nil, []Problem{{File: file, Text: fmt.Sprintf("larger than %d MiB", maxFileSize>>20)}}
	}
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	var docs []document
	var problems []Problem
	for _, part := range split(data) {
		values, err := part.values(file)
		if err != nil {
			problems = append(problems, problemAt(file, part.line, err))
		}
		for _, v := range values {
			d := document{file: file, line: v.line, json: v.json}
			found, errs := expand(d, "", "", 0)
			docs = append(docs, found...)
			for _, err := range errs {
				problems = append(problems, Problem{File: file, Line: v.line, Text: err.Error()})
			}
		}
	}
	return docs, problems
}

// part is one document of a multi-document file, as text.
type part struct {
	line int // of its first byte
	text []byte
}

// split cuts a file at the YAML document markers. A line that begins with
// "---" is one wherever it stands (YAML 1.2 §9.1.2), also inside a block
// scalar; what follows it on the same line belongs to the next document.
func split(data []byte) []part {
	var parts []part
	line, start, startLine := 1, 0, 1
	flush := func(end int) {
		text := data[start:end]
		if trimmed := bytes.TrimLeft(text, " \t\r\n"); len(trimmed) > 0 {
			skipped := text[:len(text)-len(trimmed)]
			keep := bytes.LastIndexByte(skipped, '\n') + 1 // the first line's indentation matters
			parts = append(parts, part{line: startLine + bytes.Count(skipped, []byte{'\n'}), text: text[keep:]})
		}
	}
	for pos := 0; pos < len(data); line++ {
		end := len(data)
		if i := bytes.IndexByte(data[pos:], '\n'); i >= 0 {
			end = pos + i + 1
		}
		if l := data[pos:end]; isMarker(l, "---") || isMarker(l, "...") {
			flush(pos)
			start, startLine = pos+3, line
		}
		pos = end
	}
	flush(len(data))
	return parts
}

// isMarker reports whether line is a document marker.
func isMarker(line []byte, marker string) bool {
	rest, ok := bytes.CutPrefix(line, []byte(marker))
	return ok && (len(rest) == 0 || strings.IndexByte(" \t\r\n", rest[0]) >= 0)
}

// value is one JSON value and the line where it begins.
type value struct {
	line int
	json []byte
}

// values converts a part to JSON. A part that begins with a brace may be
// several JSON values in a row; when it is not JSON it may still be a YAML flow
// mapping. An empty part (comments only) has no values.
func (p part) values(file string) ([]value, error) {
	if text := bytes.TrimLeft(p.text, " \t"); len(text) > 0 && text[0] == '{' {
		values, err := p.jsonValues()
		if err == nil || strings.HasSuffix(file, ".json") || len(values) > 0 {
			return values, err
		}
	}
	js, err := yaml.YAMLToJSONStrict(p.text)
	if err != nil {
		return nil, errors.New(strings.TrimPrefix(strings.TrimPrefix(err.Error(), "error converting YAML to JSON: "), "yaml: "))
	}
	if bytes.Equal(js, []byte("null")) {
		return nil, nil
	}
	return []value{{line: p.line + leadingComments(p.text), json: js}}, nil
}

// leadingComments counts the comment and empty lines that a document begins
// with, so that messages point at its first real line.
func leadingComments(text []byte) int {
	n := 0
	for l := range bytes.Lines(text) {
		if t := bytes.TrimSpace(l); len(t) > 0 && t[0] != '#' {
			break
		}
		n++
	}
	return n
}

// jsonValues reads JSON values until the part ends.
func (p part) jsonValues() ([]value, error) {
	var out []value
	d := json.NewDecoder(bytes.NewReader(p.text))
	for {
		at := d.InputOffset()
		at += int64(len(p.text[at:]) - len(bytes.TrimLeft(p.text[at:], " \t\r\n")))
		var raw json.RawMessage
		err := d.Decode(&raw)
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			if s, ok := errors.AsType[*json.SyntaxError](err); ok {
				at = s.Offset
			}
			return out, lineError{line: lineAt(p.text, at), text: err.Error()}
		}
		out = append(out, value{line: p.line + lineAt(p.text, at) - 1, json: raw})
	}
}

// lineAt returns the 1-based line of a byte offset.
func lineAt(text []byte, offset int64) int {
	return 1 + bytes.Count(text[:min(max(offset, 0), int64(len(text)))], []byte{'\n'})
}

// lineError is an error at a line of a part.
type lineError struct {
	line int
	text string
}

func (e lineError) Error() string { return fmt.Sprintf("line %d: %s", e.line, e.text) }

// yamlLine finds the line number that the YAML library writes into its errors.
var yamlLine = regexp.MustCompile(`^(?:unmarshal errors: )?line (\d+): `)

// problemAt turns an error of a part into a Problem with the line in the file.
func problemAt(file string, partLine int, err error) Problem {
	text := strings.Join(strings.Fields(err.Error()), " ")
	line := partLine
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		if n, convErr := strconv.Atoi(m[1]); convErr == nil {
			line, text = partLine+n-1, text[len(m[0]):]
			if strings.HasPrefix(text, "did not find expected") {
				line++ // the library's parser counts from 0, its scanner from 1
			}
		}
	}
	return Problem{File: file, Line: line, Text: text}
}

// header is what every object begins with.
type header struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Name         string `json:"name"`
		GenerateName string `json:"generateName"`
		Namespace    string `json:"namespace"`
	} `json:"metadata"`
	Items []json.RawMessage `json:"items"`
}

// expand returns the objects of a document: itself, or the items of a list.
// Items of a typed list (PodList) may leave out the kind that the list implies.
func expand(d document, apiVersion, kind string, depth int) ([]document, []error) {
	var h header
	if err := d.into(&h); err != nil {
		return nil, []error{fmt.Errorf("not a Kubernetes object: %w", err)}
	}
	if h.Kind == "" {
		h.APIVersion, h.Kind = apiVersion, kind
	}
	if h.Kind == "" || h.APIVersion == "" {
		return nil, []error{errors.New("not a Kubernetes object: apiVersion or kind is missing")}
	}
	if list, ok := strings.CutSuffix(h.Kind, "List"); ok && h.Items != nil {
		return expandList(d, h, list, depth)
	}
	d.apiVersion, d.kind = h.APIVersion, h.Kind
	d.namespace, d.name = h.Metadata.Namespace, h.Metadata.Name
	if clusterScoped(d.kind) {
		d.namespace = ""
	} else if d.namespace == "" {
		d.namespace = "default"
	}
	if kindOf(d) == kindUnknown {
		return []document{d}, nil // its name may be anything, or nothing
	}
	if d.name == "" && h.Metadata.GenerateName != "" {
		return nil, []error{fmt.Errorf("%s: generateName is not supported, give it a name", d.kind)}
	}
	if !validName(d.name) {
		return nil, []error{fmt.Errorf("%s: metadata.name %q is not a lower-case DNS name", d.kind, d.name)}
	}
	if d.namespace != "" && !validName(d.namespace) {
		return nil, []error{fmt.Errorf("%s %s: metadata.namespace %q is not a lower-case DNS name", d.kind, d.name, d.namespace)}
	}
	return []document{d}, nil
}

// expandList expands every item of a list.
func expandList(d document, h header, kind string, depth int) ([]document, []error) {
	if depth >= maxListDepth {
		return nil, []error{errors.New("lists are nested too deep")}
	}
	var out []document
	var errs []error
	for i, raw := range h.Items {
		item := document{file: d.file, line: d.line, item: i + 1, json: raw}
		apiVersion := h.APIVersion
		if kind == "" {
			apiVersion = "" // v1 List says nothing of its items
		}
		found, itemErrs := expand(item, apiVersion, kind, depth+1)
		out = append(out, found...)
		for _, err := range itemErrs {
			errs = append(errs, fmt.Errorf("item %d: %w", i+1, err))
		}
	}
	return out, errs
}

// clusterScoped reports whether objects of the kind have no namespace. Of the
// kinds that netctl does not know, those people put beside its own are listed.
func clusterScoped(kind string) bool {
	return slices.Contains([]string{
		"Node", "Namespace", "ServiceCIDR", "IPAddress", "Block", "BlockPool", "PersistentVolume", "StorageClass",
		"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition", "ClusterNetworkPolicy",
		"PriorityClass", "RuntimeClass", "IngressClass",
	}, kind)
}

// validName reports whether s is a DNS name of RFC 1123 (lower case), which is
// what all objects here are named by; it also keeps names safe in file names.
func validName(s string) bool {
	if s == "" || len(s) > maxName {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
				return false
			}
		}
	}
	return true
}
