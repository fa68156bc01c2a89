import { gzipSync } from "node:zlib";
import { defineConfig, type Plugin } from "vite";

// Two builds of one page. The usual one goes to dist/, which git ignores, with hls.js, hashed names and
// precompressed copies. `--mode fallback` goes to fallback/, which git keeps for builds without npm: the same
// page over the browser's own HLS, readable, with plain names.
export default defineConfig(({ mode }) => {
  const fallback = mode === "fallback";
  return {
    publicDir: false,
    plugins: fallback ? [withoutLibrary()] : [placeholder(), precompressed()],
    build: {
      outDir: fallback ? "fallback" : "dist",
      emptyOutDir: true,
      target: "es2022",
      minify: !fallback,
      assetsInlineLimit: 0, // the page's content security policy admits no data: URLs
      modulePreload: { polyfill: false },
      chunkSizeWarningLimit: 1000,
      reportCompressedSize: false,
      rolldownOptions: fallback
        ? {
            output: {
              entryFileNames: "assets/page.js",
              assetFileNames: "assets/[name][extname]",
            },
          }
        : {},
    },
    test: { include: ["src/**/*.test.ts"] },
  };
});

/** Points the page at the script that brings no player library. */
function withoutLibrary(): Plugin {
  return {
    name: "without-library",
    transformIndexHtml: { order: "pre", handler: (html) => html.replace("/src/main.ts", "/src/fallback.ts") },
  };
}

/** Keeps the placeholder that lets Go embed dist/ before it was ever built. */
function placeholder(): Plugin {
  return {
    name: "placeholder",
    generateBundle() {
      this.emitFile({ type: "asset", fileName: ".gitkeep", source: "" });
    },
  };
}

/** Adds a .gz copy beside each text file, for the server to send as it is. */
function precompressed(): Plugin {
  return {
    name: "precompressed",
    enforce: "post",
    generateBundle: {
      order: "post",
      handler(_, bundle) {
        for (const file of Object.values(bundle)) {
          if (!/\.(js|css|html|svg)$/.test(file.fileName)) continue;
          const whole = Buffer.from(file.type === "chunk" ? file.code : file.source);
          const packed = gzipSync(whole, { level: 9 });
          if (packed.length < whole.length) {
            this.emitFile({ type: "asset", fileName: `${file.fileName}.gz`, source: packed });
          }
        }
      },
    },
  };
}
