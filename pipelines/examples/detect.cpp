// Scores images with a model that `diffad export --format openvino` wrote: the graph needs no Python.
//
//     detect FOLDER/model.xml THRESHOLD IMAGE.ppm...
//
// Images are binary PPM of the model's size, or of twice that size where the graph has an input `detail`; the threshold is one
// of detector.json's calibration scores. Prints score and verdict of each. Build (paths of the wheel, see `pip show openvino`):
//
//     g++ -std=c++17 detect.cpp -I openvino/include openvino/libs/libopenvino.so.2641 -Wl,-rpath,openvino/libs -o detect

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <openvino/openvino.hpp>
#include <stdexcept>
#include <string>
#include <vector>

struct Image {
    size_t height = 0, width = 0;
    std::vector<unsigned char> pixels;  // rows of RGB
};

Image read_ppm(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string kind;
    Image image;
    int levels = 0;
    if (!(file >> kind >> image.width >> image.height >> levels) || kind != "P6" || levels != 255)
        throw std::runtime_error(path + ": not a binary PPM of 8 bits");
    file.get();  // the line feed after the header
    image.pixels.resize(3 * image.height * image.width);
    if (!file.read(reinterpret_cast<char*>(image.pixels.data()), image.pixels.size()))
        throw std::runtime_error(path + ": ends early");
    return image;
}

// (1, 3, height, width) in [0, 1]; of an image of a multiple of that size the means of its blocks.
ov::Tensor as_input(const Image& image, size_t height, size_t width) {
    const size_t block = image.height / height;
    if (block == 0 || image.height != block * height || image.width != block * width)
        throw std::runtime_error("an image's size is no multiple of the model's");
    ov::Tensor tensor(ov::element::f32, {1, 3, height, width});
    float* values = tensor.data<float>();
    for (size_t channel = 0; channel < 3; ++channel)
        for (size_t y = 0; y < height; ++y)
            for (size_t x = 0; x < width; ++x) {
                float sum = 0;
                for (size_t dy = 0; dy < block; ++dy)
                    for (size_t dx = 0; dx < block; ++dx)
                        sum += image.pixels[3 * ((y * block + dy) * image.width + x * block + dx) + channel];
                *values++ = sum / (255.0f * block * block);
            }
    return tensor;
}

int main(int count, char** arguments) {
    if (count < 4) return std::cerr << "usage: detect MODEL.xml THRESHOLD IMAGE.ppm...\n", 2;
    const float threshold = std::strtof(arguments[2], nullptr);
    ov::Core core;
    auto request = core.compile_model(arguments[1], "CPU", ov::hint::inference_precision(ov::element::f32)).create_infer_request();
    for (int i = 3; i < count; ++i) {
        const Image image = read_ppm(arguments[i]);
        for (const auto& input : request.get_compiled_model().inputs()) {
            const auto shape = input.get_partial_shape();
            request.set_tensor(input, as_input(image, shape[2].get_length(), shape[3].get_length()));
        }
        request.infer();
        const float score = request.get_tensor("image_score").data<float>()[0];
        std::cout << arguments[i] << " " << score << (score > threshold ? " defective" : " good") << "\n";
    }
}
