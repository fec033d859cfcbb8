//go:build !netctl_otherlayout

package mapfile

// The layout of all mapped files.
const (
	// HeadWords is the length of the header, a page.
	HeadWords = 512
	// Layout is added to the version of every file.
	Layout = 0
)
