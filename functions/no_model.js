// @ts-self-types="./tiny.d.ts"
/** In the place of tiny.js: a Worker without a bundled model, which is 0.4 MB compressed and wants `MODEL`. */
export default {};
