package tests

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Every test that docs/tls.md names is there.
func TestTheTableOfTLSNamesTests(t *testing.T) {
	t.Parallel()
	root := filepath.Join(os.Getenv("PWD"), "..") // the embedded S3 server changes the working folder
	text, err := os.ReadFile(filepath.Join(root, "docs/tls.md"))
	require.NoError(t, err)
	named := regexp.MustCompile("`([a-z0-9/]+)` (Test[A-Za-z0-9]+)").FindAllStringSubmatch(string(text), -1)
	require.Greater(t, len(named), 30)
	there := map[string]map[string]bool{}
	for _, n := range named {
		if there[n[1]] == nil {
			there[n[1]] = testsOf(t, filepath.Join(root, n[1]))
		}
		assert.True(t, there[n[1]][n[2]], "docs/tls.md names %s of %s, which is not there", n[2], n[1])
	}
}

// testsOf are the names of a folder's tests.
func testsOf(t *testing.T, folder string) map[string]bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(folder, "*_test.go"))
	require.NoError(t, err)
	require.NotEmpty(t, files, folder)
	all := map[string]bool{}
	for _, name := range files {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		require.NoError(t, err)
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
				all[fn.Name.Name] = true
			}
		}
	}
	return all
}
