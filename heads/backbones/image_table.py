"""The rows of networks that read images: torchvision's, cut into named stages."""

from __future__ import annotations

from functools import partial

from heads.backbones import cutting
from heads.backbones.cutting import CONVNEXT, MAXVIT, REGNET, RESNET, SHUFFLENET, cut_features, cut_layers
from heads.backbones.row import Backbone
from heads.backbones.source import imagenet
from heads.backbones.torchvision_lean import models

FC = ("fc.",)
BY_4 = (4, 4, 8, 16, 32)
BY_2 = (2, 4, 8, 16, 32)
# Two or three stages at one resolution, as the families found by architecture search have them.
MOBILE = (2, 2, 4, 8, 16, 16, 32, 32, 32)
# Their ImageNet weights come from TensorFlow and want its normalisation: the transform is part of the stem, with random
# weights too, so that a bundle's network does not depend on where its weights came from. `init_weights` is off, as
# torchvision announces for its default: the layers' own initialisation is quick, and as good under BatchNorm.
OF_TENSORFLOW = {"transform_input": True, "aux_logits": False, "init_weights": False}

IMAGE_ROWS: dict[str, Backbone] = {
    "resnet18": Backbone(models.resnet18, imagenet(models.ResNet18_Weights), RESNET, (64, 64, 128, 256, 512), BY_4, FC),
    "resnet34": Backbone(models.resnet34, imagenet(models.ResNet34_Weights), RESNET, (64, 64, 128, 256, 512), BY_4, FC),
    "resnet50": Backbone(models.resnet50, imagenet(models.ResNet50_Weights), RESNET, (64, 256, 512, 1024, 2048), BY_4, FC),
    "mobilenet_v2": Backbone(
        models.mobilenet_v2,
        imagenet(models.MobileNet_V2_Weights),
        cut_features(0, 1, 2, 4, 7, 11, 14, 17, 18),
        (32, 16, 24, 32, 64, 96, 160, 320, 1280),
        MOBILE,
    ),
    "mobilenet_v3_small": Backbone(
        models.mobilenet_v3_small,
        imagenet(models.MobileNet_V3_Small_Weights),
        cut_features(0, 1, 2, 4, 9, 12),
        (16, 16, 24, 48, 96, 576),
        (2, 4, 8, 16, 32, 32),
    ),
    "mobilenet_v3_large": Backbone(
        models.mobilenet_v3_large,
        imagenet(models.MobileNet_V3_Large_Weights),
        cut_features(0, 1, 2, 4, 7, 13, 16),
        (16, 16, 24, 40, 112, 160, 960),
        (2, 2, 4, 8, 16, 32, 32),
    ),
    "squeezenet1_1": Backbone(
        models.squeezenet1_1, imagenet(models.SqueezeNet1_1_Weights), cut_features(0, 2, 5, 8), (64, 128, 256, 512), (2, 4, 8, 16)
    ),
    "efficientnet_b0": Backbone(
        models.efficientnet_b0,
        imagenet(models.EfficientNet_B0_Weights),
        cut_features(*range(9)),
        (32, 16, 24, 40, 80, 112, 192, 320, 1280),
        MOBILE,
    ),
    "shufflenet_v2_x1_0": Backbone(
        models.shufflenet_v2_x1_0,
        imagenet(models.ShuffleNet_V2_X1_0_Weights),
        SHUFFLENET,
        (24, 116, 232, 464, 1024),
        (4, 8, 16, 32, 32),
        FC,
    ),
    "convnext_tiny": Backbone(
        models.convnext_tiny, imagenet(models.ConvNeXt_Tiny_Weights), CONVNEXT, (96, 96, 192, 384, 768), BY_4
    ),
    "alexnet": Backbone(models.alexnet, imagenet(models.AlexNet_Weights), cut_features(0, 3, 6), (64, 192, 256), (8, 16, 32)),
    # A VGG's stages end in their pooling: a frozen prefix then leaves a quarter to store.
    "vgg11": Backbone(
        models.vgg11, imagenet(models.VGG11_Weights), cut_features(0, 3, 6, 11, 16), (64, 128, 256, 512, 512), BY_2
    ),
    "vgg11_bn": Backbone(
        models.vgg11_bn, imagenet(models.VGG11_BN_Weights), cut_features(0, 4, 8, 15, 22), (64, 128, 256, 512, 512), BY_2
    ),
    "vgg16": Backbone(
        models.vgg16, imagenet(models.VGG16_Weights), cut_features(0, 5, 10, 17, 24), (64, 128, 256, 512, 512), BY_2
    ),
    "vgg16_bn": Backbone(
        models.vgg16_bn, imagenet(models.VGG16_BN_Weights), cut_features(0, 7, 14, 24, 34), (64, 128, 256, 512, 512), BY_2
    ),
    "resnet101": Backbone(models.resnet101, imagenet(models.ResNet101_Weights), RESNET, (64, 256, 512, 1024, 2048), BY_4, FC),
    "resnext50_32x4d": Backbone(
        models.resnext50_32x4d, imagenet(models.ResNeXt50_32X4D_Weights), RESNET, (64, 256, 512, 1024, 2048), BY_4, FC
    ),
    "wide_resnet50_2": Backbone(
        models.wide_resnet50_2, imagenet(models.Wide_ResNet50_2_Weights), RESNET, (64, 256, 512, 1024, 2048), BY_4, FC
    ),
    "inception_v3": Backbone(
        partial(models.inception_v3, **OF_TENSORFLOW),
        imagenet(models.Inception_V3_Weights),
        cutting.inception,
        (192, 288, 768, 2048),
        (8, 8, 16, 32),
        ("fc.", "AuxLogits."),
    ),
    "googlenet": Backbone(
        partial(models.googlenet, **OF_TENSORFLOW),
        imagenet(models.GoogLeNet_Weights),
        cutting.googlenet,
        (192, 480, 832, 1024),
        (8, 8, 16, 32),
        ("fc.", "aux1.", "aux2."),
    ),
    "densenet121": Backbone(
        models.densenet121, imagenet(models.DenseNet121_Weights), cutting.densenet, (64, 256, 512, 1024, 1024), BY_4
    ),
    "mnasnet1_0": Backbone(
        models.mnasnet1_0,
        imagenet(models.MNASNet1_0_Weights),
        cut_layers(0, 3, 8, 9, 10, 11, 12, 13, 14),
        (32, 16, 24, 40, 80, 96, 192, 320, 1280),
        MOBILE,
    ),
    "efficientnet_b3": Backbone(
        models.efficientnet_b3,
        imagenet(models.EfficientNet_B3_Weights),
        cut_features(*range(9)),
        (40, 24, 32, 48, 96, 136, 232, 384, 1536),
        MOBILE,
        interpolation="bicubic",
    ),
    "efficientnet_v2_s": Backbone(
        models.efficientnet_v2_s,
        imagenet(models.EfficientNet_V2_S_Weights),
        cut_features(*range(8)),
        (24, 24, 48, 64, 128, 160, 256, 1280),
        (2, 2, 4, 8, 16, 16, 32, 32),
    ),
    "regnet_y_400mf": Backbone(
        models.regnet_y_400mf, imagenet(models.RegNet_Y_400MF_Weights), REGNET, (32, 48, 104, 208, 440), BY_2, FC
    ),
    "regnet_y_8gf": Backbone(
        models.regnet_y_8gf, imagenet(models.RegNet_Y_8GF_Weights), REGNET, (32, 224, 448, 896, 2016), BY_2, FC
    ),
    "convnext_base": Backbone(
        models.convnext_base, imagenet(models.ConvNeXt_Base_Weights), CONVNEXT, (128, 128, 256, 512, 1024), BY_4
    ),
    "vit_b_16": Backbone(
        models.vit_b_16, imagenet(models.ViT_B_16_Weights), cutting.vit, (768,) * 5, (16,) * 5, ("heads.",), "tokens"
    ),
    "vit_b_32": Backbone(
        models.vit_b_32, imagenet(models.ViT_B_32_Weights), cutting.vit, (768,) * 5, (32,) * 5, ("heads.",), "tokens"
    ),
    "swin_t": Backbone(
        models.swin_t,
        imagenet(models.Swin_T_Weights),
        cutting.swin,
        (96, 96, 192, 384, 768),
        BY_4,
        ("head.",),
        interpolation="bicubic",
    ),
    "swin_v2_t": Backbone(
        models.swin_v2_t,
        imagenet(models.Swin_V2_T_Weights),
        cutting.swin,
        (96, 96, 192, 384, 768),
        BY_4,
        ("head.",),
        interpolation="bicubic",
    ),
    "maxvit_t": Backbone(
        models.maxvit_t, imagenet(models.MaxVit_T_Weights), MAXVIT, (64, 64, 128, 256, 512), BY_2, interpolation="bicubic"
    ),
}
